"""Masks depend only on seed and position, cover what they should, and are applied to the image."""

import pytest
import torch

from ldm.data.fields.masks import BrushMask, FullMask, MaskedImage, RandomChoice, RectangleMask

ROW = {
    "image": torch.randint(256, (3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
}


@pytest.mark.parametrize("kind", [BrushMask, RectangleMask])
def test_a_mask_is_keyed_by_seed_and_position(kind) -> None:
    masks = [kind(1)(ROW, position)["mask"] for position in range(50)]
    assert all(torch.equal(mask, kind(1)(ROW, i)["mask"]) for i, mask in enumerate(masks))
    assert not all(torch.equal(mask, kind(2)(ROW, i)["mask"]) for i, mask in enumerate(masks))
    assert all(set(mask.unique().tolist()) <= {0, 255} and mask.any() for mask in masks)
    covered = torch.stack(masks).float().mean((1, 2, 3)) / 255
    assert 0.05 < covered.mean() < 0.5 and covered.std() > 0.03


def test_rectangles_are_within_their_sizes() -> None:
    for position in range(30):
        mask = RectangleMask(0, max_rectangles=1, min_side=0.25, max_side=0.5)(ROW, position)["mask"][0] > 0
        height, width = mask.any(1).sum(), mask.any(0).sum()
        assert 12 <= height <= 24 and 16 <= width <= 32 and mask.sum() == height * width


def test_random_choice_follows_the_weights() -> None:
    choice = RandomChoice([FullMask(), RectangleMask(0)], [1, 3], seed=0)
    whole = sum(bool((choice(ROW, position)["mask"] == 255).all()) for position in range(400))
    assert 70 < whole < 130
    with pytest.raises(ValueError, match="weights=.0.0. for 1"):
        RandomChoice([FullMask()], [0.0], seed=0)


@pytest.mark.parametrize("fill", [0.0, -1.0])
def test_the_image_under_the_mask_is_filled(fill: float) -> None:
    mask = BrushMask(0)(ROW, 3)["mask"]
    masked = MaskedImage(fill)({**ROW, "mask": mask}, 3)["masked"]
    is_masked = (mask > 0).expand(3, -1, -1)
    assert (masked[is_masked] == fill).all()
    assert torch.equal(masked[~is_masked], (ROW["image"].float() / 127.5 - 1)[~is_masked])
