"""Pseudo linear multistep, PLMS (Liu et al. 2022)."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.steps import exp_step_eps, is_finite, schedule_points
from ldm.diffusion.schedule import Schedule

ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of the newest prediction, the one before it, ..., for equal steps."""


def plms(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
) -> Iterator[Float[Tensor, "b z h w"]]:
    """DDIM's step with eps' = (55 eps_t - 59 eps_t+1 + 37 eps_t+2 - 9 eps_t+3) / 24.

    Liu et al. 2022, section 3.3. The first steps use the predictions so far; the very first evaluates
    `denoise` at both its ends and takes the mean. The weights assume equally spaced times:
    `leading` or `linspace`.
    """
    z_t, history = z_T, list[Tensor]()
    for t, s in pairwise(schedule_points(schedule, times)):
        z_0, eps = denoise(z_t, t.time)
        z_s = s.alpha * z_0 + s.sigma * eps
        if is_finite(t, s):
            history = [eps, *history][:4]
            if len(history) == 1:
                mean = (eps + denoise(z_s, s.time)[1]) / 2
            else:
                weights = ADAMS_BASHFORTH[len(history)]
                mean = sum((w * e for w, e in zip(weights, history, strict=True)), torch.zeros_like(eps))
            z_s = exp_step_eps(z_t, mean, t, s)
        z_t = z_s
        yield z_t
