"""τ is the same for latent and image, and the identity in the other steps."""

import pytest
import torch

from ldm.losses.equivariance import Equivariance


def test_it_rotates_latent_and_image_alike() -> None:
    """Images with one colour per patch remain an upscaled copy of the latent."""
    z = torch.randn(2, 3, 4, 6)
    x = z.repeat_interleave(8, 2).repeat_interleave(8, 3)
    equivariance = Equivariance(probability=1.0, smallest=0.5)
    for quarter in range(4):
        rotated, image = equivariance(z, x, torch.tensor([0.0, 0.9999, quarter / 4 + 0.01]))
        assert torch.equal(rotated, torch.rot90(z, quarter, (2, 3)))
        assert torch.equal(image, rotated.repeat_interleave(8, 2).repeat_interleave(8, 3))


def test_it_downscales_both_and_keeps_their_means() -> None:
    z = torch.randn(2, 3, 8, 8)
    x = z.repeat_interleave(4, 2).repeat_interleave(4, 3)
    smaller, image = Equivariance(1.0, smallest=0.5)(z, x, torch.tensor([0.0, 0.0, 0.0]))
    assert smaller.shape == (2, 3, 4, 4) and image.shape == (2, 3, 16, 16)
    torch.testing.assert_close(smaller.mean((2, 3)), z.mean((2, 3)), atol=0.15, rtol=0)
    torch.testing.assert_close(image.mean((2, 3)), x.mean((2, 3)), atol=0.15, rtol=0)


def test_its_smallest_size() -> None:
    equivariance = Equivariance(1.0, smallest=0.25)
    assert [equivariance.scale_length(length) for length in (8, 7, 1)] == [2, 2, 1]
    x = equivariance(torch.randn(1, 3, 8, 7), torch.randn(1, 3, 32, 28), torch.zeros(3))[1]
    assert x.shape == (1, 3, 8, 8)


def test_it_does_nothing_in_the_other_steps() -> None:
    z, x = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 16, 16)
    unchanged = Equivariance(probability=0.5)(z, x, torch.tensor([0.5, 0.2, 0.9]))
    assert unchanged[0] is z and unchanged[1] is x


@pytest.mark.parametrize(("probability", "smallest"), [(1.5, 0.5), (0.5, 0.0), (0.5, 1.1)])
def test_values_out_of_range_are_refused(probability: float, smallest: float) -> None:
    with pytest.raises(ValueError, match=rf"probability={probability} .* smallest={smallest}"):
        Equivariance(probability, smallest)
