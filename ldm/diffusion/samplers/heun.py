"""Heun's method (Karras et al. 2022)."""

from collections.abc import Callable, Iterator
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.steps import Point, is_finite, schedule_points
from ldm.diffusion.schedule import Schedule


def heun(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
) -> Iterator[Float[Tensor, "b z h w"]]:
    """Euler's step with the mean of eps at both its ends (Karras et al. 2022, algorithm 1).

    Evaluates `denoise` twice per step, once in the step into 0. It integrates over sigma/alpha: for schedules
    that end in thousands (cosine) use times that grow with it (karras, exponential), or DPM-Solver++.
    """
    z_t = z_T
    for t, s in pairwise(schedule_points(schedule, times)):
        z_t = heun_step(denoise, z_t, t, s)
        yield z_t


def heun_step(
    denoise: Denoise, z_t: Float[Tensor, "b z h w"], t: Point, s: Point
) -> Float[Tensor, "b z h w"]:
    """z_s/alpha_s = z_t/alpha_t + (sigma_s/alpha_s - sigma_t/alpha_t) (eps_t + eps_s) / 2."""
    z_0, eps = denoise(z_t, t.time)
    z_s = s.alpha * z_0 + s.sigma * eps
    if not is_finite(t, s):
        return z_s
    _, eps_s = denoise(z_s, s.time)
    return z_s + (s.sigma - s.alpha / t.alpha * t.sigma) * (eps_s - eps) / 2
