"""DDPM's ancestral sampling (Ho et al. 2020)."""

from collections.abc import Callable, Iterator

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.schedule import Schedule


def ddpm(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
) -> Iterator[Float[Tensor, "b z h w"]]:
    """z_s ~ q(z_s | z_t, z_0) with the predicted z_0 (Ho et al. 2020, eq. 6 and 7), on any falling times.

    That posterior is DDIM's step with eta = 1 (Song et al. 2021, section 4.1), implemented there.
    """
    return ddim(denoise, z_T, times, schedule, noise, eta=1.0)
