"""DPM-Solver-3 (Lu et al. 2022a)."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.steps import Point, exp_step_eps, is_finite, lam_midpoint, schedule_points
from ldm.diffusion.schedule import Schedule


def dpm_solver_3(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
) -> Iterator[Float[Tensor, "b z h w"]]:
    """DDIM's step and 3/2 sigma_s (1 - (e^h - 1)/h) (eps_2 - eps_t), eps_2 at two thirds of lam

    (Lu et al. 2022a, algorithm 2). Evaluates `denoise` three times per step, once in the step into 0.
    The thirds are rarely whole times.
    """
    z_t = z_T
    for t, s in pairwise(schedule_points(schedule, times)):
        z_0, eps = denoise(z_t, t.time)
        if is_finite(t, s):
            one, two = (lam_midpoint(schedule, t, s, share) for share in (1 / 3, 2 / 3))
            change = denoise(one.alpha * z_0 + one.sigma * eps, one.time)[1] - eps
            u = exp_step_eps(z_t, eps, t, two) - 2 * _slope(t, two) * change
            change = denoise(u, two.time)[1] - eps
            z_t = exp_step_eps(z_t, eps, t, s) - 3 / 2 * _slope(t, s) * change
        else:
            z_t = s.alpha * z_0 + s.sigma * eps
        yield z_t


def _slope(t: Point, s: Point) -> float:
    """sigma_s ((e^h - 1)/h - 1): the change of z_s per unit by which the prediction grows over the step."""
    h = s.lam - t.lam
    return s.sigma * (math.expm1(h) / h - 1)
