"""DDIM (Song et al. 2021)."""

from collections.abc import Callable, Iterator

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.schedule import Schedule


def ddim(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
    eta: float = 0.0,
) -> Iterator[Float[Tensor, "b z h w"]]:
    """z_s = alpha_s z_0 + sqrt(sigma_s² - tau²) eps + tau noise (Song et al. 2021, eq. 12),

    tau = eta (sigma_s/sigma_t) sqrt(1 - (alpha_t/alpha_s)²) (eq. 16). eta 0 follows the ODE, 1 is DDPM.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in 0..1, not {eta}")
    z_t = z_T
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        z_0, eps = denoise(z_t, t)
        alpha_t, sigma_t = _at(schedule, t, z_t)
        alpha_s, sigma_s = _at(schedule, s, z_t)
        tau = eta * sigma_s / sigma_t * (1 - (alpha_t / alpha_s).square()).sqrt()
        z_t = alpha_s * z_0 + (sigma_s.square() - tau.square()).sqrt() * eps
        if eta > 0 and s > 0:
            z_t = z_t + tau * noise(i).to(z_t)
        yield z_t


def _at(schedule: Schedule, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of one time, broadcastable to z, in z's precision."""
    t = t.to(z.device).expand(1)
    return schedule.alpha(t).to(z.dtype), schedule.sigma(t).to(z.dtype)
