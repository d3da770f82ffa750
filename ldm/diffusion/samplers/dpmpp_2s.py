"""DPM-Solver++(2S) (Lu et al. 2022b)."""

from collections.abc import Callable, Iterator
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.steps import exp_step_z0, is_finite, lam_midpoint, schedule_points
from ldm.diffusion.schedule import Schedule


def dpmpp_2s(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
) -> Iterator[Float[Tensor, "b z h w"]]:
    """z_s = (sigma_s/sigma_t) z_t + alpha_s (1 - e^-h) z_0, z_0 at the midpoint in lam.

    Lu et al. 2022b, algorithm 1 (r = 1/2). Evaluates `denoise` twice per step, once in the step into 0.
    The midpoint is rarely a whole time.
    """
    z_t = z_T
    for t, s in pairwise(schedule_points(schedule, times)):
        z_0, eps = denoise(z_t, t.time)
        if is_finite(t, s):
            m = lam_midpoint(schedule, t, s, 1 / 2)
            z_0, _ = denoise(m.alpha * z_0 + m.sigma * eps, m.time)
            z_t = exp_step_z0(z_t, z_0, t, s)
        else:
            z_t = s.alpha * z_0 + s.sigma * eps
        yield z_t
