"""From pixels to latent positions."""

import pytest
import torch
import torch.nn.functional as F

from ldm.conditioning.rescalers import LearnedRescaler, MaxPoolMask, MinMaxNormalized, PixelUnshuffle, Resize


def test_the_learned_rescaler_mixes_the_channels_of_cell_means():
    """Halving bilinearly is the mean of 2x2; twice, of 4x4."""
    rescaler, x = LearnedRescaler(5, 3), torch.rand(2, 5, 16, 8)
    expected = F.conv2d(F.avg_pool2d(x, 4), rescaler.mixed.weight)
    torch.testing.assert_close(rescaler(x, (4, 2)), expected)
    assert not rescaler(torch.zeros_like(x), (4, 2)).any(), "without a bias, an empty map is its null"
    assert sum(p.numel() for p in LearnedRescaler(182, 3).parameters()) == 546
    for size in ((3, 2), (4, 4), (4, 3)):
        with pytest.raises(ValueError, match="cannot be halved"):
            rescaler(x, size)


def test_unshuffle_keeps_every_pixel():
    x = torch.arange(64.0).view(1, 1, 8, 8)
    y = PixelUnshuffle(1, 4)(x, (2, 2))
    assert y.shape == (1, 16, 2, 2) and PixelUnshuffle(3, 2).out_channels == 12
    assert y[0, :, 0, 1].tolist() == x[0, 0, :4, 4:].flatten().tolist()
    with pytest.raises(ValueError, match=r"\(8, 8\) is not 4 times"):
        PixelUnshuffle(1, 4)(x, (4, 4))


def test_max_pooling_masks_each_cell_that_the_mask_touches():
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 7, 5] = 1
    assert MaxPoolMask()(x, (2, 2))[0, 0].tolist() == [[0, 0], [0, 1]]
    assert not Resize(1, "nearest")(x, (2, 2)).any(), "the nearest pixel is the upper left one"


def test_resize_leaves_a_map_of_the_right_size_unchanged():
    x = torch.rand(1, 3, 8, 8)
    assert Resize(3, "bicubic")(x, (8, 8)) is x
    assert Resize(3, "area")(x, (4, 4)).shape == (1, 3, 4, 4) and Resize(3, "area").out_channels == 3
    antialiased = Resize(3, "bilinear", antialias=True)(x, (2, 2))
    assert not torch.allclose(antialiased, Resize(3, "bilinear")(x, (2, 2)))


def test_each_map_is_normalized_by_itself_after_resizing():
    x = torch.rand(3, 1, 32, 32) * torch.tensor([0.1, 1.0, 0.0]).view(3, 1, 1, 1)
    rescaler = MinMaxNormalized(Resize(1, "bicubic"))
    y = rescaler(x, (4, 4))
    assert y.shape == (3, 1, 4, 4) and rescaler.out_channels == 1
    for normalized, plain in zip(y[:2], Resize(1, "bicubic")(x, (4, 4)), strict=False):
        assert (normalized.min(), normalized.max()) == (-1, 1)
        low, high = plain.aminmax()
        torch.testing.assert_close(normalized, 2 * (plain - low) / (high - low) - 1)
    assert (y[2] == -1).all(), "a constant map is far everywhere"
