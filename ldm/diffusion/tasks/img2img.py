"""Image to image: SDEdit (Meng et al. 2022)."""

from collections.abc import Callable, Iterator

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.samplers.steps import schedule_points
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue


def img2img(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
    sampler: Sampler,
    z_0: Float[Tensor, "#b z h w"],
    strength: float,
) -> Iterator[Float[Tensor, "b z h w"]]:
    """z_t = alpha_t z_0 + sigma_t z_T, and the sampler's steps from there (Meng et al. 2022, algorithm 1).

    Args:
        z_0: the latent to start from, one for all images or one per image.
        strength: the proportion of the steps to take, in (0, 1], at least one; t is the first of their times.
    """
    times = remaining_times(times, strength)
    (t,) = schedule_points(schedule, times[:1])
    yield from sampler(denoise, t.alpha * z_0 + t.sigma * z_T, times, schedule, noise)


def remaining_times(times: Float[Tensor, " s"], strength: float) -> Float[Tensor, " r"]:
    """Return the times of the last `strength` of the steps."""
    if not 0 < strength <= 1:
        raise InvalidValue(f"strength must lie in (0, 1], not {strength}")
    steps = len(times) - 1
    return times[steps - max(1, round(strength * steps)) :]
