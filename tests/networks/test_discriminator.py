import pytest
import torch
from torch import nn

from ldm.networks.blocks import GroupNorm
from ldm.networks.discriminator import PatchDiscriminator


@pytest.mark.parametrize(("layers", "count", "size"), [(3, 2_765_633, 30), (2, 663_361, 62)])
def test_parameters_and_logits_as_published(layers: int, count: int, size: int) -> None:
    with torch.device("meta"):
        model = PatchDiscriminator(num_layers=layers, norm=nn.BatchNorm2d)
        assert model(torch.empty(2, 3, 256, 256)).shape == (2, 1, size, size)
    assert sum(p.numel() for p in model.parameters()) == count


def test_group_norm_treats_images_separately_and_batch_norm_mixes_them() -> None:
    x = torch.randn(2, 3, 32, 32)
    separate, mixed = PatchDiscriminator(channels=8), PatchDiscriminator(channels=8, norm=nn.BatchNorm2d)
    assert any(isinstance(m, GroupNorm) for m in separate.modules())
    torch.testing.assert_close(separate(x)[:1], separate(x[:1]), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(mixed(x)[:1], mixed(x[:1]), atol=1e-5, rtol=1e-4)


def test_lightning_can_synchronise_the_batch_norm() -> None:
    """`trainer.sync_batchnorm=true` converts only torch's own batch norms."""
    model = PatchDiscriminator(channels=8, norm=nn.BatchNorm2d)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in synced.modules()) == 3
    assert not any(isinstance(m, nn.BatchNorm2d) for m in synced.modules())


def test_weights_start_small() -> None:
    model = PatchDiscriminator()
    assert abs(model.blocks[1][0].weight.std() - 0.02) < 0.001
    assert abs(model.blocks[1][1].weight.mean() - 1) < 0.01


def test_the_receptive_field_of_a_logit_is_its_patch() -> None:
    """Without norms, the middle logit of three layers depends on 70x70 pixels (Isola et al. 2017)."""
    model = PatchDiscriminator(channels=4, norm=lambda channels: nn.Identity())
    x = torch.randn(1, 3, 128, 128, requires_grad=True)
    model(x)[0, 0, 7, 7].backward()
    rows = x.grad[0].abs().sum((0, 2)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 70


@pytest.mark.parametrize(("layers", "min_size"), [(2, 12), (3, 24)])
def test_an_image_too_small_is_refused(layers: int, min_size: int) -> None:
    model = PatchDiscriminator(channels=4, num_layers=layers)
    assert model(torch.randn(1, 3, min_size, min_size)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=f"needs {min_size} pixels per side, not {min_size}x{min_size - 1}"):
        model(torch.randn(1, 3, min_size, min_size - 1))
