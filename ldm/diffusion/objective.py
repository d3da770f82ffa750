"""The training objective of the denoiser."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.parameterization import Parameterization
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.weighting import Weighting
from ldm.typing import Conditioning


@runtime_checkable
class Network(Protocol):
    """f_theta(z_t, t, c), called with the scaled z_t and `schedule.network_time(t)`."""

    def __call__(
        self, z_t: Float[Tensor, "b z h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b z h w"]: ...


def diffusion_loss(
    network: Network,
    z_0: Float[Tensor, "b z h w"],
    cond: Conditioning,
    eps: Float[Tensor, "b z h w"],
    u: Float[Tensor, " b"],
    schedule: Schedule,
    parameterization: Parameterization,
    weighting: Weighting,
    times: Callable[[Tensor], Tensor],
    input_noise: Float[Tensor, "b z h w"] | float = 0.0,
) -> Float[Tensor, " b"]:
    """L_LDM = E w(t) ‖ y − f_θ(z_t, t, c) ‖²,  z_t = α_t z_0 + σ_t ε   (Rombach et al. 2022, eq. 2 and 3).

    Returns one term per sample; training minimises their mean. The caller samples eps ~ N(0, I), u ~ U[0, 1).

    Args:
        network: f_theta; its squared error is averaged over channels and latent positions.
        weighting: w(t).
        times: maps u to t, on the device of u. On the CPU it may compute in float64, which some devices lack.
        input_noise: added to eps in z_t but not in y (Ning et al. 2023, "input perturbation").
    """
    t = times(u).to(z_0.device)  #                                               b
    alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)  #                   b 1 1 1
    z_t = alpha_t * z_0 + sigma_t * (eps + input_noise)  #                       b z h w
    target = parameterization.target(z_0, eps, alpha_t, sigma_t)  #              b z h w
    y = network(parameterization.input_scale(alpha_t, sigma_t) * z_t, schedule.network_time(t), cond)
    error = (y.float() - target).square().mean((1, 2, 3))  #                     b
    return weighting.loss(error, alpha_t, sigma_t)
