"""Scalars as sinusoidal embeddings, like SDXL's sizes."""

import pytest
import torch
from diffusers.models.embeddings import Timesteps

from ldm.conditioning.scalars import Scalars

SIZES = torch.tensor([[1024.0, 768, 0, 128, 1024, 1024], [512.0, 512, 3, 0, 1024, 1024]])


def test_they_are_the_published_embeddings_concatenated():
    published = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(SIZES.flatten()).view(2, -1)
    ours = Scalars("sizes", 6, 256, 0.0)(SIZES).vector
    torch.testing.assert_close(ours, published, rtol=1e-4, atol=1e-4)
    assert torch.equal(Scalars("sizes", 4, 256, 0.0)(SIZES).vector, ours[:, : 4 * 256]), "the refiner's"


def test_the_null_is_zeros():
    scalars = Scalars("sizes", 6, 8, 0.1)
    assert scalars.null(3).vector.shape == (3, 48) and not scalars.null(3).vector.any()
    assert not (scalars(torch.zeros(1, 6)).vector == 0).all(), "zero is a number, not the null"


def test_a_scale_separates_small_numbers():
    near = torch.tensor([[0.1], [0.2]])
    plain, scaled = (Scalars("depth", 1, 16, 0.0, scale=s)(near).vector for s in (1.0, 100.0))
    assert (scaled[0] - scaled[1]).norm() > 5 * (plain[0] - plain[1]).norm()


def test_too_few_scalars_are_refused():
    with pytest.raises(ValueError, match=r"batch\['sizes'\] has 6 scalars .* n=7"):
        Scalars("sizes", 7, 8, 0.0)(SIZES)
    for n, width in ((0, 8), (1, 7), (1, 0)):
        with pytest.raises(ValueError, match=f"not {n} and {width}"):
            Scalars("sizes", n, width, 0.0)
