"""Between two noises and between two conditions."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue
from ldm.typing import Conditioning


def slerp(
    a: Float[Tensor, "*shape n"], b: Float[Tensor, "*shape n"], share: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape n"]:
    """(sin((1 - w) φ) a + sin(w φ) b) / sin φ, φ the angle between a and b (Shoemake 1985).

    A mixture of two noises keeps the length that noise has, which a straight line between them does not. Of
    parallel vectors it is the limit, the straight line.
    """
    cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=torch.finfo(a.dtype).tiny)
    angle = cosine.clamp(-1, 1).acos()
    flat = angle.sin() < 1e-4
    divisor = torch.where(flat, 1.0, angle.sin())
    from_a = torch.where(flat, 1 - share, ((1 - share) * angle).sin() / divisor)
    from_b = torch.where(flat, share, (share * angle).sin() / divisor)
    return from_a[..., None] * a + from_b[..., None] * b


def interpolate_conditions(a: Conditioning, b: Conditioning, share: Float[Tensor, " b"]) -> Conditioning:
    """`share` of the way from a to b: every token and vector by `slerp`, images along a straight line."""

    def mixed(x: Tensor | None, y: Tensor | None, straight: bool) -> Tensor | None:
        if x is None or y is None:
            if x is not y:
                raise InvalidValue("two conditions can be mixed only if they fill the same slots")
            return None
        w = share.to(x).view(-1, *[1] * (x.ndim - 1))
        return torch.lerp(x, y, w) if straight else slerp(x, y, w[..., 0].expand(x.shape[:-1]))

    return Conditioning(
        mixed(a.context, b.context, False), mixed(a.vector, b.vector, False), mixed(a.concat, b.concat, True)
    )


def slerp_noise(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
    sampler: Sampler,
    other: Float[Tensor, "b z h w"],
    share: Float[Tensor, " b"],
) -> Iterator[Float[Tensor, "b z h w"]]:
    """The sampler from z_T mixed with `share` of another noise, by `slerp` over all that a image has."""
    mixed = slerp(z_T.flatten(1), other.to(z_T).flatten(1), share.to(z_T)).view_as(z_T)
    return sampler(denoise, mixed, times, schedule, noise)
