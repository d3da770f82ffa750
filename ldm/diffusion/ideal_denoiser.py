"""The exact denoiser of a Gaussian mixture, to study schedules and samplers without a network."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.steps import schedule_points
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue


def gaussian_mixture_denoiser(schedule: Schedule, means: Float[Tensor, "k n"], std: float) -> Denoise:
    """E[z_0 | z_t] for z_0 ~ mean_k N(means_k, std² I), and the matching eps.

    Given k, z_t ~ N(alpha m_k, v I) with v = alpha² std² + sigma², and the mean of z_0 is
    (alpha std² z_t + sigma² m_k)/v; k has the weight softmax_k(-|z_t - alpha m_k|²/2v).
    """
    if std <= 0:
        raise InvalidValue(f"the components of a mixture need std > 0, not {std}")

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        (at,) = schedule_points(schedule, t.reshape(1))
        flat, m = z_t.flatten(1), means.to(z_t)
        v = (at.alpha * std) ** 2 + at.sigma**2
        weights = torch.softmax(-torch.cdist(flat, at.alpha * m).square() / (2 * v), 1)
        z_0 = ((at.alpha * std**2 * flat + at.sigma**2 * weights @ m) / v).view_as(z_t)
        return z_0, (z_t - at.alpha * z_0) / at.sigma

    return denoise


def two_moons(k: int) -> Float[Tensor, "k 2"]:
    """Return k points along two interleaved half circles, with mean 0 and variance 1 on each axis."""
    if k < 4:
        raise InvalidValue(f"two moons need k >= 4 points, not {k}")
    angle = torch.linspace(0, math.pi, k - k // 2, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    angle = torch.linspace(0, math.pi, k // 2, dtype=torch.float64)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    moons = torch.cat([upper, lower])
    return (moons - moons.mean(0)) / moons.std(0, correction=0)


def sample_mixture(
    means: Float[Tensor, "k n"], std: float, n: int, generator: torch.Generator
) -> Float[Tensor, "b n"]:
    """Sample n points of the mixture."""
    if n < 1:
        raise InvalidValue(f"sampling a mixture needs n >= 1, not {n}")
    k = torch.randint(len(means), (n,), generator=generator)
    return means[k] + std * torch.randn(n, means.shape[1], generator=generator, dtype=means.dtype)


def energy_distance(x: Float[Tensor, "a n"], y: Float[Tensor, "b n"]) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, 0 for equal distributions (Székely & Rizzo 2013)."""
    if min(len(x), len(y)) < 2:
        raise InvalidValue(f"the energy distance needs >= 2 samples of each, not {len(x)} and {len(y)}")
    within = sum(torch.cdist(s, s).sum().item() / (len(s) * (len(s) - 1)) for s in (x, y))
    return 2 * torch.cdist(x, y).mean().item() - within
