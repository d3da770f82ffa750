"""EDM's stochastic sampler (Karras et al. 2022)."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.heun import heun_step
from ldm.diffusion.samplers.steps import at_lam, schedule_points
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue
from ldm.typing import NonNegativeFloat, PositiveFloat


def edm(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
    churn: NonNegativeFloat = 40.0,
    churn_min: NonNegativeFloat = 0.05,
    churn_max: PositiveFloat = 50.0,
    inflation: PositiveFloat = 1.003,
) -> Iterator[Float[Tensor, "b z h w"]]:
    """Heun's steps, each after adding a little noise (Karras et al. 2022, algorithm 2).

    For r = sigma/alpha in churn_min..churn_max, r' = (1 + min(churn/N, sqrt 2 - 1)) r for N steps, at
    most the schedule's largest r, and z'/alpha' = z/alpha + sqrt(r'² - r²) inflation noise. The defaults are
    those of ImageNet at 64 pixels (table 5; S_churn, S_tmin, S_tmax, S_noise there). Evaluates `denoise` as
    often as `heun`.
    """
    if churn < 0 or not 0 <= churn_min <= churn_max or inflation <= 0:
        raise InvalidValue(
            "sampler=edm needs churn >= 0, 0 <= churn_min <= churn_max and inflation > 0, "
            f"not {churn}, {churn_min}, {churn_max}, {inflation}"
        )
    z_t, grid = z_T, schedule_points(schedule, times)
    (last,) = schedule_points(schedule, torch.tensor([schedule.num_steps], dtype=torch.float64))
    growth = math.log1p(min(churn / (len(grid) - 1), math.sqrt(2) - 1))
    for i, (t, s) in enumerate(pairwise(grid)):
        lam = max(t.lam - growth, last.lam)
        if lam < t.lam and churn_min <= math.exp(-t.lam) <= churn_max:
            noisier = at_lam(schedule, lam, t)
            spread = math.sqrt(max(0.0, math.exp(-2 * noisier.lam) - math.exp(-2 * t.lam)))
            z_t = noisier.alpha * (z_t / t.alpha + spread * inflation * noise(i).to(z_t))
            t = noisier
        z_t = heun_step(denoise, z_t, t, s)
        yield z_t
