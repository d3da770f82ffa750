"""DPM-Solver++(3M), the third-order multistep solver (Lu et al. 2022b)."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.steps import Point, exp_step_z0, is_finite, schedule_points
from ldm.diffusion.schedule import Schedule

History: TypeAlias = list[tuple[Point, Tensor]]
"""Times and predictions of z_0 there, the newest first."""


def dpmpp_3m(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
) -> Iterator[Float[Tensor, "b z h w"]]:
    """z_s = (sigma_s/sigma_t) z_t + alpha_s [c_1 z_0 + c_2 z_0' + c_3 z_0''], c_1 = 1 - e^-h, c_2 = h - c_1,

    c_3 = h²/2 - c_2: the integral of z_0's Taylor polynomial in lam (Lu et al. 2022b, section 4.1), with
    derivatives from the last three predictions; the first two steps have one and two.

    The published code (dpm-solver, diffusers, k-diffusion) has h² z_0''/2 in the place of h² z_0'', which
    makes the solver second order (measured: docs/guide/samplers.md). This one is third order.
    """
    z_t, history = z_T, History()
    for t, s in pairwise(schedule_points(schedule, times)):
        z_0, _ = denoise(z_t, t.time)
        z_s = exp_step_z0(z_t, z_0, t, s)
        if math.isfinite(t.lam):
            history = [(t, z_0), *history][:3]
        if is_finite(t, s):
            h = s.lam - t.lam
            c_2 = h + math.expm1(-h)
            c_3 = h**2 / 2 - c_2
            first, second = _derivatives(history)
            z_s = z_s + s.alpha * (c_2 * first + c_3 * second)
        z_t = z_s
        yield z_t


def _derivatives(history: History) -> tuple[Tensor | float, Tensor | float]:
    """Return z_0' and z_0'' in lam at the newest prediction, by divided differences; 0 with too few."""
    if len(history) == 1:
        return 0.0, 0.0
    (t, z), (r, z_r), *rest = history
    near = (z - z_r) / (t.lam - r.lam)
    if not rest:
        return near, 0.0
    ((q, z_q),) = rest
    bend = (near - (z_r - z_q) / (r.lam - q.lam)) / (t.lam - q.lam)
    return near + (t.lam - r.lam) * bend, 2 * bend
