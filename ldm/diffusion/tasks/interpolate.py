"""Interpolate between two noises and between two conditions."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue
from ldm.typing import Conditioning


def slerp(
    a: Float[Tensor, "*shape n"], b: Float[Tensor, "*shape n"], weight: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape n"]:
    """(sin((1 - w) φ) a + sin(w φ) b) / sin φ, φ the angle between a and b (Shoemake 1985).

    Unlike linear interpolation, it preserves the norm of noise. Parallel vectors are interpolated linearly,
    which is the limit of the equation.
    """
    cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=torch.finfo(a.dtype).tiny)
    angle = cosine.clamp(-1, 1).acos()
    flat = angle.sin() < 1e-4
    divisor = torch.where(flat, 1.0, angle.sin())
    from_a = torch.where(flat, 1 - weight, ((1 - weight) * angle).sin() / divisor)
    from_b = torch.where(flat, weight, (weight * angle).sin() / divisor)
    return from_a[..., None] * a + from_b[..., None] * b


def interpolate_conditions(a: Conditioning, b: Conditioning, weight: Float[Tensor, " b"]) -> Conditioning:
    """Interpolate by `weight` from a (0) to b (1): tokens and vectors by `slerp`, maps linearly."""

    def interpolate(x: Tensor | None, y: Tensor | None, linear: bool) -> Tensor | None:
        if x is None or y is None:
            if x is not y:
                raise InvalidValue(
                    "cannot interpolate between conditions that fill different fields of Conditioning"
                )
            return None
        w = weight.to(x).view(-1, *[1] * (x.ndim - 1))
        return torch.lerp(x, y, w) if linear else slerp(x, y, w[..., 0].expand(x.shape[:-1]))

    return Conditioning(
        context=interpolate(a.context, b.context, False),
        context_mask=_mask(a.context_mask, b.context_mask, weight),
        vector=interpolate(a.vector, b.vector, False),
        concat=interpolate(a.concat, b.concat, True),
    )


def _mask(
    a: Bool[Tensor, "b l"] | None, b: Bool[Tensor, "b l"] | None, weight: Float[Tensor, " b"]
) -> Bool[Tensor, "b l"] | None:
    """Return the tokens of either text, and at weight 0 or 1 those of a or b alone."""
    if a is None or b is None:
        return None  # both, since the context has been interpolated
    w = weight.to(a.device)[:, None]
    return torch.where(w == 0, a, torch.where(w == 1, b, a | b))


def slerp_noise(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
    sampler: Sampler,
    other: Float[Tensor, "b z h w"],
    weight: Float[Tensor, " b"],
) -> Iterator[Float[Tensor, "b z h w"]]:
    """Run the sampler from the `slerp` of z_T and another noise, per image."""
    z_T = slerp(z_T.flatten(1), other.to(z_T).flatten(1), weight.to(z_T)).view_as(z_T)
    return sampler(denoise, z_T, times, schedule, noise)
