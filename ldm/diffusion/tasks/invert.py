"""DDIM inversion: from a latent to the noise that gives it (Song et al. 2021)."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.steps import Point, exp_step_eps, is_finite, schedule_points
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue


def invert(
    denoise: Denoise,
    z_0: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    refinements: int,
) -> Iterator[Float[Tensor, "b z h w"]]:
    """The z_t from which DDIM's step leads to z_s: z_t = (alpha_t/alpha_s) (z_s - sigma_s eps) + sigma_t eps.

    Yields z at times[-2], ..., times[0]; `ddim` on the same times inverts it. eps is the prediction at z_t,
    which is unknown; with that at z_s this is DDIM's own inversion (Song et al. 2021, section 4.3). Each of
    the `refinements`, one evaluation per step, predicts eps at the last estimate of z_t (Pan et al. 2023,
    section 3.1), so that `ddim` ends closer to z_0. Nothing is evaluated at t = 0.
    """
    if refinements < 0:
        raise InvalidValue(f"inversion needs refinements >= 0, not {refinements}")
    z_s = z_0
    for s, t in pairwise(reversed(schedule_points(schedule, times))):
        if s.sigma == t.alpha == 0:
            raise InvalidValue("a single step from pure noise to 0 cannot be inverted: use at least 2 steps")
        z_s = _find_fixed_point(_inverse_step(denoise, z_s, s, t), z_s, refinements)
        yield z_s


def _inverse_step(denoise: Denoise, z_s: Tensor, s: Point, t: Point) -> Callable[[Tensor], Tensor]:
    """Return the map from a guess of z_t to DDIM's step from s to the noisier t with the prediction there."""

    def step(z_t: Tensor) -> Tensor:
        z_0, eps = denoise(z_t, t.time)
        if s.sigma == 0 or is_finite(t, s):
            return exp_step_eps(z_s, eps, s, t)
        # In pure noise eps is z_t whatever the network predicts: only z_0 carries information.
        return t.sigma / s.sigma * (z_s - s.alpha * z_0)

    return step


def _find_fixed_point(function: Callable[[Tensor], Tensor], z: Tensor, refinements: int) -> Tensor:
    """Solve z = f(z): apply f, then Anderson mixing of the last two iterates (1965), per image."""
    before, image_before = z, function(z)
    z = image_before
    for _ in range(refinements):
        image = function(z)
        gap = image - z
        change = gap - (image_before - before)
        square = change.square().sum((1, 2, 3), keepdim=True)
        share = (gap * change).sum((1, 2, 3), keepdim=True) / square.clamp(min=torch.finfo(z.dtype).tiny)
        before, z = z, image - share * (image - image_before)
        image_before = image
    return z
