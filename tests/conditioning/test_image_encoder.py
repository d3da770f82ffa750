"""The image encoder that is trained with the denoiser."""

import pytest
import torch

from ldm.conditioning.image_encoder import ImageEncoder

IMAGES = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()


def tower(**options):
    return ImageEncoder(16, 4, 32, 2, 2, 0.1, **options)


@pytest.mark.parametrize(("patches", "tokens"), [(False, 1), (True, 16)])
def test_an_image_is_one_token_or_one_per_patch(patches, tokens):
    model = tower(patches=patches, vector=True)
    cond = model(IMAGES)
    assert cond.context.shape == (2, tokens, 32) and cond.vector.shape == (2, 32)
    assert (cond.context[0] - cond.context[1]).norm() > 1e-2
    null = model.null(3)
    assert null.context.shape == (3, tokens, 32) and not null.context.any() and not null.vector.any()
    assert patches or torch.equal(cond.context[:, 0], cond.vector)


def test_all_parameters_are_trained_and_saved_in_checkpoints():
    model = tower()
    model(IMAGES).context.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == set()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert model.describe_frozen_weights() == {}


def test_images_of_other_sizes_are_resized_as_a_whole():
    grey = torch.full((1, 3, 40, 24), 255, dtype=torch.uint8)
    torch.testing.assert_close(tower().preprocess(grey), torch.ones(1, 3, 16, 16))
    with pytest.raises(ValueError, match="size 16, patch 5"):
        ImageEncoder(16, 5, 32, 2, 2, 0.1)
