"""DDIM (Song et al. 2021)."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.steps import schedule_points
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue
from ldm.typing import Proportion


def ddim(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
    eta: Proportion = 0.0,
) -> Iterator[Float[Tensor, "b z h w"]]:
    """z_s = alpha_s z_0 + sqrt(sigma_s² - tau²) eps + tau noise (Song et al. 2021, eq. 12),

    tau = eta sigma_s sqrt(1 - e^-2h), h = lam_s - lam_t: of a variance-preserving schedule that is eq. 16,
    eta (sigma_s/sigma_t) sqrt(1 - (alpha_t/alpha_s)²). eta 0 follows the ODE; 1 samples q(z_s | z_t, z_0),
    which is DDPM.
    """
    if not 0 <= eta <= 1:
        raise InvalidValue(f"eta must lie in 0..1, not {eta}")
    z_t = z_T
    for i, (t, s) in enumerate(pairwise(schedule_points(schedule, times))):
        z_0, eps = denoise(z_t, t.time)
        tau = eta * s.sigma * math.sqrt(-math.expm1(2 * (t.lam - s.lam)))
        z_t = s.alpha * z_0 + math.sqrt(s.sigma**2 - tau**2) * eps
        if tau > 0:
            z_t = z_t + tau * noise(i).to(z_t)
        yield z_t
