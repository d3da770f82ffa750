"""DPM-Solver++(2M) and its stochastic form (Lu et al. 2022b)."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.steps import is_finite, schedule_points
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue
from ldm.typing import Proportion


def dpmpp_2m(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
    eta: Proportion = 0.0,
) -> Iterator[Float[Tensor, "b z h w"]]:
    """z_s = (sigma_s/sigma_t) e^(-eta h) z_t + alpha_s (1 - e^(-(1 + eta) h)) d + tau noise,

    d = z_0 + (h / 2 h_r) (z_0 - z_0,r), tau = sigma_s sqrt(1 - e^(-2 eta h)); r is the time before t and
    h_r = lam_t - lam_r, and in the first step d = z_0. eta 0 follows the ODE (Lu et al. 2022b, algorithm 2),
    1 is their SDE-DPM-Solver++(2M).
    """
    if not 0 <= eta <= 1:
        raise InvalidValue(f"eta must lie in 0..1, not {eta}")
    z_t, last = z_T, None
    for i, (t, s) in enumerate(pairwise(schedule_points(schedule, times))):
        z_0, _ = denoise(z_t, t.time)
        d = z_0
        if last is not None and is_finite(t, s):
            r, z_0_r = last
            d = z_0 + (s.lam - t.lam) / (2 * (t.lam - r.lam)) * (z_0 - z_0_r)
        decay = math.exp(eta * (t.lam - s.lam)) if eta > 0 else 1.0  # 0 times infinity is none
        z_t = s.sigma / t.sigma * decay * z_t + s.alpha * (1 - decay * math.exp(t.lam - s.lam)) * d
        if eta > 0 and s.sigma > 0:
            z_t = z_t + s.sigma * math.sqrt(1 - decay**2) * noise(i).to(z_t)
        yield z_t
        last = (t, z_0) if math.isfinite(t.lam) else None
