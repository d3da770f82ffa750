"""The closed form against importance sampling, and the energy distance."""

import pytest
import torch

from ldm.diffusion.ideal_denoiser import energy_distance, gaussian_mixture_denoiser, sample_mixture, two_moons
from ldm.diffusion.samplers.steps import schedule_points
from ldm.diffusion.schedule import RectifiedFlow, ScaledLinear, Schedule


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("schedule", [ScaledLinear(), RectifiedFlow(1000)], ids=["vp", "flow"])
@pytest.mark.parametrize("t", [80.0, 400.0, 1000.0])
def test_the_denoiser_is_the_posterior_mean(schedule: Schedule, t: float) -> None:
    """E[z_0 | z_t] by importance sampling from the prior."""
    means, std, time = two_moons(12), 0.3, torch.tensor(t, dtype=torch.float64)
    (at,) = schedule_points(schedule, time.reshape(1))
    z_0 = sample_mixture(means, std, 400_000, generator(0))
    z_t = torch.tensor([[0.4, -0.3], [-1.0, 0.8]], dtype=torch.float64) * at.alpha + 0.3 * at.sigma
    weights = torch.softmax(-torch.cdist(z_t, at.alpha * z_0).square() / (2 * at.sigma**2), 1)
    mean, eps = gaussian_mixture_denoiser(schedule, means, std)(z_t[..., None, None], time)
    torch.testing.assert_close(mean[..., 0, 0], weights @ z_0, rtol=0, atol=0.02)
    torch.testing.assert_close(at.alpha * mean + at.sigma * eps, z_t[..., None, None])


def test_the_moons_have_mean_0_and_variance_1() -> None:
    moons = two_moons(101)
    assert moons.shape == (101, 2)
    torch.testing.assert_close(moons.mean(0), torch.zeros(2).double())
    torch.testing.assert_close(moons.std(0, correction=0), torch.ones(2).double())


def test_energy_distance_distinguishes_densities() -> None:
    means = two_moons(50)
    x, y, z = (sample_mixture(means, std, 2000, generator(i)) for i, std in enumerate((0.1, 0.1, 0.9)))
    assert abs(energy_distance(x, y)) < 0.004 < 0.02 < energy_distance(x, z)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="std > 0, not 0"):
        gaussian_mixture_denoiser(ScaledLinear(), two_moons(4), 0.0)
    with pytest.raises(ValueError, match="k >= 4 points, not 3"):
        two_moons(3)
