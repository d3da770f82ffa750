"""SDE-DPM-Solver++(2M) (Lu et al. 2022b)."""

from collections.abc import Callable, Iterator

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.dpmpp_2m import dpmpp_2m
from ldm.diffusion.schedule import Schedule


def dpmpp_2m_sde(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
) -> Iterator[Float[Tensor, "b z h w"]]:
    """z_s = (sigma_s/sigma_t) e^-h z_t + alpha_s (1 - e^-2h) d + sigma_s sqrt(1 - e^-2h) noise.

    DPM-Solver++(2M) with eta = 1 (Lu et al. 2022b), implemented there.
    """
    return dpmpp_2m(denoise, z_T, times, schedule, noise, eta=1.0)
