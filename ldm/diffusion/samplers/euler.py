"""Euler's method (Karras et al. 2022; Liu et al. 2023)."""

from collections.abc import Callable, Iterator

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.schedule import Schedule


def euler(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
) -> Iterator[Float[Tensor, "b z h w"]]:
    """z_s/alpha_s = z_t/alpha_t + (sigma_s/alpha_s - sigma_t/alpha_t) eps (Karras et al. 2022).

    Multiplied by alpha_s it is alpha_s z_0 + sigma_s eps, DDIM's step without noise, and so is the step of a
    rectified flow, z_s = z_t + (s - t)/T (eps - z_0) (Liu et al. 2023, eq. 1). It is implemented there.
    """
    return ddim(denoise, z_T, times, schedule, noise)
