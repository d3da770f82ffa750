import pytest
import torch
import torch.nn.functional as F

from ldm.networks.blocks import (
    Downsample,
    GroupNorm,
    LayerNorm,
    ResidualBlock,
    TimeResidualBlock,
    Upsample,
    num_groups,
)


@pytest.mark.parametrize(
    ("channels", "groups"), [(320, 32), (32, 32), (48, 24), (40, 20), (8, 8), (7, 7), (37, 1)]
)
def test_num_groups_is_the_largest_divisor_up_to_32(channels: int, groups: int) -> None:
    assert num_groups(channels) == groups


def test_norms_keep_the_dtype_under_autocast_and_agree_with_fp32() -> None:
    x = torch.randn(2, 48, 6, 6) + 3
    for norm, value in ((GroupNorm(48), x), (LayerNorm(48), x.flatten(2).mT)):
        torch.nn.init.normal_(norm.weight)
        with torch.autocast("cpu", torch.bfloat16):
            low = norm(value.bfloat16())
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), norm(value), atol=0.05, rtol=0.02)


def test_group_norm_normalises_every_group() -> None:
    y = GroupNorm(64)(5 * torch.randn(3, 64, 4, 4) + 2).view(3, 32, -1)
    torch.testing.assert_close(y.mean(-1), torch.zeros(3, 32), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(-1, unbiased=False), torch.ones(3, 32), atol=1e-3, rtol=0)


def test_residual_block_is_its_equation() -> None:
    block, x = ResidualBlock(8, 12), torch.randn(2, 8, 5, 5)
    h = block.conv1(F.silu(block.norm1(x)))
    expected = block.shortcut(x) + block.conv2(F.silu(block.norm2(h)))
    assert torch.equal(block(x), expected) and expected.shape == (2, 12, 5, 5)


@pytest.mark.parametrize("scale_shift_norm", [False, True])
def test_time_residual_block_starts_as_the_identity_and_depends_on_time(scale_shift_norm: bool) -> None:
    block = TimeResidualBlock(8, 8, 16, dropout=0.0, scale_shift_norm=scale_shift_norm)
    x, e = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    assert torch.equal(block(x, e), x)
    torch.nn.init.normal_(block.conv2.weight)
    assert not torch.allclose(block(x, e), block(x, -e))


def test_dropout_acts_in_training_only() -> None:
    block = TimeResidualBlock(8, 8, 16, dropout=0.5, scale_shift_norm=False)
    torch.nn.init.normal_(block.conv2.weight)
    x, e = torch.randn(1, 8, 4, 4), torch.randn(1, 16)
    assert not torch.equal(block(x, e), block(x, e))
    block.eval()
    assert torch.equal(block(x, e), block(x, e))


def test_resampling_halves_and_doubles() -> None:
    x = torch.randn(1, 4, 6, 10)
    assert Downsample(4)(x).shape == (1, 4, 3, 5)
    assert Upsample(4)(x).shape == (1, 4, 12, 20)
