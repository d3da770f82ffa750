"""Euler's method with ancestral noise (k-diffusion's `sample_euler_ancestral`)."""

from collections.abc import Callable, Iterator

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.schedule import Schedule
from ldm.typing import Proportion


def euler_ancestral(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
    eta: Proportion = 1.0,
) -> Iterator[Float[Tensor, "b z h w"]]:
    """x_s = x_t + (down - x̄_t) eps + up noise, with x = z/alpha and x̄ = sigma/alpha,

    up = eta x̄_s sqrt(1 - (x̄_s/x̄_t)²), down = sqrt(x̄_s² - up²). Since x_t = z_0 + x̄_t eps and
    x̄_s/x̄_t = e^-h, multiplying by alpha_s gives DDIM's step with that eta, implemented there.
    """
    return ddim(denoise, z_T, times, schedule, noise, eta)
