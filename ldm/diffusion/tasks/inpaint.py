"""Inpainting with any model, and resampling."""

from collections.abc import Callable, Iterator
from itertools import count

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.samplers.steps import Point, schedule_points
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue


def inpaint(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
    sampler: Sampler,
    known: Float[Tensor, "#b z h w"],
    mask: Float[Tensor, "#b 1 h w"],
) -> Iterator[Float[Tensor, "b z h w"]]:
    """Run the sampler with `replace_known(denoise)`: the known part of the result is exactly `known`."""
    return sampler(replace_known(denoise, schedule, known, mask), z_T, times, schedule, noise)


def replace_known(
    denoise: Denoise,
    schedule: Schedule,
    known: Float[Tensor, "#b z h w"],
    mask: Float[Tensor, "#b 1 h w"],
) -> Denoise:
    """z_0 <- mask z_0 + (1 - mask) known, eps <- (z_t - alpha_t z_0)/sigma_t.

    A sampler then moves the known part from z_T to `known` along q(z_s | z_t, z_0 = known), as replacing it
    with noisy copies does (Song et al. 2021b, appendix I.2; Lugmayr et al. 2022, eq. 8). Here all copies have
    the same noise, so that samplers of higher order work as well. `mask` is 1 where the image is unknown.
    """

    def denoise_unknown(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        z_0, _ = denoise(z_t, t)
        z_0 = torch.lerp(known.to(z_0).expand_as(z_0), z_0, mask.to(z_0))
        (at,) = schedule_points(schedule, t.reshape(1))
        return z_0, (z_t - at.alpha * z_0) / at.sigma

    return denoise_unknown


def resample(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
    sampler: Sampler,
    repeats: int,
    jump: int,
) -> Iterator[Float[Tensor, "b z h w"]]:
    """Run every `jump` steps `repeats` times, adding their noise again in between.

    The unknown part then fits the known part better, at `repeats` times the cost (Lugmayr et al. 2022,
    section 4.2). The noise is numbered in order over all repetitions: `noise(0), noise(1), ...`. A multistep
    sampler restarts with every segment of `jump` steps.
    """
    if repeats < 1 or jump < 1:
        raise InvalidValue(f"resampling needs repeats >= 1 and jump >= 1, not {repeats} and {jump}")
    z_t, numbers = z_T, count()

    def next_noise(_: int) -> Tensor:
        return noise(next(numbers))

    for first in range(0, len(times) - 1, jump):
        segment = times[first : first + jump + 1]
        start, *_, end = schedule_points(schedule, segment)
        for repeats_left in reversed(range(repeats)):
            for z_s in sampler(denoise, z_t, segment, schedule, next_noise):
                yield z_s
            z_t = add_noise(z_s, end, start, next_noise(0).to(z_s)) if repeats_left else z_s


def add_noise(z_s: Tensor, s: Point, t: Point, noise: Tensor) -> Tensor:
    """z_t ~ q(z_t | z_s), t the noisier: a z_s + sqrt(sigma_t² - a² sigma_s²) noise, a = alpha_t/alpha_s."""
    a = t.alpha / s.alpha
    return a * z_s + (t.sigma**2 - (a * s.sigma) ** 2) ** 0.5 * noise
