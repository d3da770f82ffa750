"""How t is drawn in training, and how it is spaced in sampling."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


class UniformTimes:
    """t uniform on 1..T (Ho et al. 2020, algorithm 1)."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """t from u ~ U[0, 1)."""
        return (u * self.num_steps).floor() + 1


class LogitNormalTimes:
    """logit(t/T) ~ N(mean, std²) (Esser et al. 2024, section 3.1); mean > 0 leans to noise."""

    def __init__(self, num_steps: int, mean: float = 0.0, std: float = 1.0) -> None:
        if std <= 0:
            raise ValueError(f"logit-normal times need std > 0, not {std}")
        self.num_steps, self.mean, self.std = num_steps, mean, std

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """t from u ~ U[0, 1)."""
        normal = torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7))
        t = torch.sigmoid(self.mean + self.std * normal) * self.num_steps
        return t.ceil().clamp(1, self.num_steps).to(u.dtype)


def _check(num_steps: int, steps: int) -> None:
    if not 1 <= steps <= num_steps:
        raise ValueError(f"sampling steps must lie in 1..{num_steps}, not {steps}")


def leading(num_steps: int, steps: int) -> Float[Tensor, " s"]:
    """t_i = floor(i T/S) + 1, falling, then 0: DDIM's (Song et al. 2021), within 1..T for all S."""
    _check(num_steps, steps)
    return torch.tensor(
        [i * num_steps // steps + 1 for i in reversed(range(steps))] + [0], dtype=torch.float32
    )


def trailing(num_steps: int, steps: int) -> Float[Tensor, " s"]:
    """t_i = round(T - i T/S), then 0: starts at pure noise, T (Lin et al. 2024, table 2)."""
    _check(num_steps, steps)
    times = [math.floor(num_steps - i * num_steps / steps + 0.5) for i in range(steps)]
    return torch.tensor([*times, 0], dtype=torch.float32)


def linspace(num_steps: int, steps: int) -> Float[Tensor, " s"]:
    """S equal steps from T to 1, then 0 (Nichol & Dhariwal 2021, section 4)."""
    _check(num_steps, steps)
    span = (num_steps - 1) / max(steps - 1, 1)
    return torch.tensor(
        [math.floor(num_steps - i * span + 0.5) for i in range(steps)] + [0], dtype=torch.float32
    )
