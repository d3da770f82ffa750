"""From a network to `denoise(z_t, t) -> (z_0, eps)`, with or without guidance."""

from collections.abc import Callable
from dataclasses import fields
from typing import TypeAlias

import torch
from torch import Tensor

from ldm.diffusion.objective import Network
from ldm.diffusion.parameterization import Parameterization
from ldm.diffusion.schedule import Schedule
from ldm.typing import Conditioning

Denoise: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(z_t: b z h w, t: scalar) -> (z_0, eps), both b z h w."""


def guided(
    network: Network,
    schedule: Schedule,
    parameterization: Parameterization,
    cond: Conditioning,
    null: Conditioning | None = None,
    scale: float = 1.0,
) -> Denoise:
    """y = y_null + scale (y_cond - y_null) (Ho & Salimans 2022, eq. 6; here scale 1 is no guidance).

    Both predictions come from one pass over a doubled batch; scale 1 does not compute the second half.
    """
    if scale != 1 and null is None:
        raise ValueError(f"guidance of scale {scale} needs the null condition")
    both = cond if scale == 1 or null is None else _stack(cond, null)

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.to(z_t.device).expand(len(z_t))
        alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)
        inputs, time = parameterization.input_scale(alpha_t, sigma_t) * z_t, schedule.network_time(t)
        if both is cond:
            y = network(inputs, time, cond).to(z_t.dtype)
        else:
            y, y_null = (
                network(torch.cat([inputs, inputs]), torch.cat([time, time]), both).to(z_t.dtype).chunk(2)
            )
            y = y_null + scale * (y - y_null)
        return parameterization.solve(y, z_t, alpha_t, sigma_t)

    return denoise


def _stack(cond: Conditioning, null: Conditioning) -> Conditioning:
    """One conditioning of twice the batch; the two must fill the same slots."""
    slots = {}
    for field in fields(Conditioning):
        a, b = getattr(cond, field.name), getattr(null, field.name)
        assert (a is None) == (b is None), f"cond and null must both fill {field.name}, or neither"
        slots[field.name] = None if a is None else torch.cat([a, b])
    return Conditioning(**slots)
