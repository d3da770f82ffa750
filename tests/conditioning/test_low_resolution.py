"""Low-resolution images, with and without noise."""

import pytest
import torch

from ldm.conditioning.base import Compose
from ldm.conditioning.low_resolution import LowResolution
from ldm.conditioning.rescalers import PixelUnshuffle, Resize
from ldm.diffusion.schedule import ScaledLinear
from ldm.errors import UserError
from ldm.networks.denoiser import sinusoidal_embedding

SMALL = torch.randint(0, 256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
NOISE = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
BATCH = {"small": SMALL, "noise_level": torch.tensor([0, 1, 350]), "noise": NOISE}


def small(level_channels=1, **options):
    return LowResolution(0.1, 1, Resize(3, "nearest"), level_channels=level_channels, **options)


def test_its_pixels_are_concatenated_to_the_latent():
    cond = Compose({"small": small()})({"small": SMALL})
    torch.testing.assert_close(cond.concat, SMALL.float() / 127.5 - 1)
    assert cond.vector is None and small().batch_keys == ("small",)


def test_noise_is_added_at_its_level_which_the_vector_gives():
    schedule = ScaledLinear(1000, 1e-4, 0.02)
    cond = Compose({"small": small(schedule=schedule)})(BATCH)
    x = SMALL.float() / 127.5 - 1
    assert torch.equal(cond.concat[0], x[0]), "level 0 is no noise"
    alpha, sigma = schedule.alpha(torch.tensor([350.0])), schedule.sigma(torch.tensor([350.0]))
    torch.testing.assert_close(cond.concat[2], alpha[0] * x[2] + sigma[0] * NOISE[2])
    assert cond.vector.tolist() == [[0], [0], [349]], "published levels count from 0, which is t = 1"
    embedded = Compose({"small": small(16, schedule=schedule)})(BATCH).vector
    assert torch.equal(embedded, sinusoidal_embedding(torch.tensor([0.0, 0, 349]), 16))
    assert small(schedule=schedule).max_noise_level == 1000
    assert small(schedule=schedule, max_noise_level=350).max_noise_level == 350


def test_the_null_is_zeros_in_both():
    model = small(16, schedule=ScaledLinear())
    null = model.null(2, (8, 8))
    assert null.concat.shape == (2, 3, 8, 8) and null.vector.shape == (2, 16)
    assert not null.concat.any() and not null.vector.any()


def test_several_pixels_per_latent_position():
    model = LowResolution(0.1, 2, PixelUnshuffle(3, 2))
    cond = Compose({"small": model})({"small": SMALL})
    assert cond.concat.shape == (3, 12, 4, 4) and model.latent_size({"small": SMALL}) == (4, 4)


def test_missing_keys_and_odd_channels_are_refused():
    with pytest.raises(
        UserError, match=r"\'small\' needs batch\[\'noise\'\], batch\[\'noise_level\'\], .* small: "
    ):
        Compose({"small": small(schedule=ScaledLinear())})({"small": SMALL})
    with pytest.raises(ValueError, match="level_channels .* got 3"):
        small(3)


def test_the_highest_noise_level_is_a_time_of_the_schedule() -> None:
    schedule, rescaler = ScaledLinear(10), Resize(3, "nearest")
    assert LowResolution(0.1, 1, rescaler, schedule, max_noise_level=10).max_noise_level == 10
    with pytest.raises(ValueError, match="max_noise_level=11 is above the schedule's num_steps=10"):
        LowResolution(0.1, 1, rescaler, schedule, max_noise_level=11)
