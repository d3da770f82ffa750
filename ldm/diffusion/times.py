"""Timestep distributions for training, and timestep spacings for sampling.

A spacing is called as `spacing(schedule, steps)`; spacings of integer times also accept T as the schedule.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue
from ldm.typing import PositiveFloat, PositiveInt, Range, Rho, Shift, Timesteps


class UniformTimes:
    """t uniform on 1..T (Ho et al. 2020, algorithm 1)."""

    def __init__(self, num_steps: Timesteps) -> None:
        _check_num_steps(num_steps)
        self.num_steps = num_steps

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return t for u ~ U[0, 1)."""
        return (u * self.num_steps).floor() + 1


class LogitNormalTimes:
    """logit(t/T) ~ N(mean, std²) (Esser et al. 2024, section 3.1); mean > 0 favours noisier t."""

    def __init__(
        self,
        num_steps: Timesteps,
        mean: Annotated[float, Range(-20, 20)] = 0.0,
        std: Annotated[float, Range(1e-8, 20)] = 1.0,
    ) -> None:
        _check_num_steps(num_steps)
        _check_std("logit-normal", std)
        self.num_steps, self.mean, self.std = num_steps, mean, std

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return t for u ~ U[0, 1)."""
        t = torch.sigmoid(self.mean + self.std * _to_normal(u)) * self.num_steps
        return t.ceil().clamp(1, self.num_steps).to(u.dtype)


class LogNormalTimes:
    """log(sigma/alpha) ~ N(mean, std²), real t within 1..T (Karras et al. 2022, table 1: P_mean, P_std)."""

    def __init__(
        self,
        schedule: Schedule,
        mean: Annotated[float, Range(-20, 20)] = -1.2,
        std: Annotated[float, Range(1e-8, 20)] = 1.2,
    ) -> None:
        _check_std("log-normal", std)
        self.schedule, self.mean, self.std = schedule, mean, std

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return t for u ~ U[0, 1)."""
        t = self.schedule.time(-(self.mean + self.std * _to_normal(u)).to(u.dtype))
        return t.clamp(1, self.schedule.num_steps)


class ShiftedTimes:
    """t' = s t/(1 + (s - 1) t/T) for t of other times (Esser et al. 2024, eq. 23): s > 1 favours noisier t.

    For a rectified flow this multiplies sigma/alpha by s, as recommended for s times the resolution.
    """

    def __init__(self, times: Callable[[Tensor], Tensor], num_steps: Timesteps, shift: Shift = 3.0) -> None:
        _check_num_steps(num_steps)
        if shift <= 0:
            raise InvalidValue(f"shifted times need shift > 0, not {shift}")
        self.times, self.num_steps, self.shift = times, num_steps, shift

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return t for u ~ U[0, 1)."""
        t = self.times(u)
        t = self.shift * t / (1 + (self.shift - 1) * t / self.num_steps)
        return t.clamp(1, self.num_steps)


def stratify(u: Float[Tensor, " b"], position: Int64[Tensor, " b"], strata: int) -> Float[Tensor, " b"]:
    """u' = (position mod B + u)/B: each of B equal parts of [0, 1) gets one u' per B positions.

    Kingma et al. 2021, appendix I.1, with one u per sample; B = `strata`. Position p is the (p mod B)-th of
    its global batch on any rank, so ranks need not communicate. B = 1 leaves u unchanged.
    """
    if strata < 1:
        raise InvalidValue(f"stratified u needs strata >= 1 parts of [0, 1), not {strata}")
    spread = ((position % strata).double() + u.double()) / strata
    return spread.to(u.dtype).clamp(max=1 - torch.finfo(u.dtype).eps / 2)  # rounding may reach 1


def deterministic_u(position: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
    """u = frac(1/2 + p (sqrt 5 - 1)/2): multiples of the golden ratio fill [0, 1) evenly for any number of p.

    Replaces random u in validation, so that an image is always evaluated at the same noise level.
    """
    u = (0.5 + position.double() * (math.sqrt(5) - 1) / 2).frac().float()
    return u.clamp(max=1 - torch.finfo(torch.float32).eps / 2)


def leading(schedule: Schedule | int, steps: PositiveInt) -> Float[Tensor, " s"]:
    """t_i = floor(i T/S) + 1, decreasing, then 0: DDIM's (Song et al. 2021), within 1..T for all S."""
    T = _check_steps(schedule, steps)
    return _append_zero(torch.arange(steps - 1, -1, -1) * T // steps + 1)


def trailing(schedule: Schedule | int, steps: PositiveInt) -> Float[Tensor, " s"]:
    """t_i = round(T - i T/S), then 0: starts at pure noise, T (Lin et al. 2024, table 2)."""
    T = _check_steps(schedule, steps)
    return _append_zero((T - torch.arange(steps).double() * T / steps + 0.5).floor())


def linspace(schedule: Schedule | int, steps: PositiveInt) -> Float[Tensor, " s"]:
    """S equal steps from T to 1, then 0 (Nichol & Dhariwal 2021, section 4)."""
    T = _check_steps(schedule, steps)
    span = (T - 1) / max(steps - 1, 1)
    return _append_zero((T - torch.arange(steps).double() * span + 0.5).floor())


def karras(schedule: Schedule, steps: PositiveInt, rho: Rho = 7.0) -> Float[Tensor, " s"]:
    """(sigma/alpha)^(1/rho) in S equal steps from T to 1, then 0 (Karras et al. 2022, eq. 5)."""
    if rho <= 0:
        raise InvalidValue(f"timestep_spacing=karras needs rho > 0, not {rho}")
    clean, noisy = (math.exp(-lam / rho) for lam in _lam_range(schedule, steps))
    root = torch.linspace(noisy, clean, steps, dtype=torch.float64)
    return _from_lam(schedule, -rho * root.log())


def exponential(schedule: Schedule, steps: PositiveInt) -> Float[Tensor, " s"]:
    """lam in S equal steps from T to 1, then 0 (Lu et al. 2022a, section 3.4): `karras` with infinite rho."""
    clean, noisy = _lam_range(schedule, steps)
    return _from_lam(schedule, torch.linspace(noisy, clean, steps, dtype=torch.float64))


def explicit(schedule: Schedule, steps: PositiveInt, times: Sequence[PositiveFloat]) -> Float[Tensor, " s"]:
    """Return the decreasing `times`, then 0; for another number of steps, lam is interpolated over the index.

    This is how the optimised lists of Sabour et al. (2024, "Align Your Steps") are used.
    """
    _check_steps(schedule, steps)
    listed = torch.tensor([float(t) for t in times], dtype=torch.float64)
    if len(listed) < 2 or listed[0] > schedule.num_steps or listed[-1] < 1 or (listed.diff() >= 0).any():
        raise InvalidValue(
            f"timestep_spacing.times needs 2 or more, decreasing within 1..{schedule.num_steps}, not {times}"
        )
    if steps == len(listed):
        return _append_zero(listed)
    index = torch.linspace(0, len(listed) - 1, steps, dtype=torch.float64)
    low = index.long().clamp(max=len(listed) - 2)
    lam = schedule.lam(listed).flatten().clamp(min=_lam_range(schedule, steps)[1])
    t = schedule.time(torch.lerp(lam[low], lam[low + 1], index - low))
    t[0] = listed[0]
    return _append_zero(t)


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise InvalidValue(f"training times in 1..num_steps need num_steps >= 1, not {num_steps}")


def _check_std(name: str, std: float) -> None:
    if std <= 0:
        raise InvalidValue(f"{name} times need std > 0, not {std}")


def _to_normal(u: Tensor) -> Tensor:
    """Map U[0, 1) to N(0, 1), in double precision."""
    return torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7))


def _check_steps(schedule: Schedule | int, steps: int) -> int:
    """Return T, given directly or by a schedule; InvalidValue unless steps lie in 1..T."""
    T = schedule if isinstance(schedule, int) else schedule.num_steps
    if not 1 <= steps <= T:
        raise InvalidValue(f"steps must lie in 1..{T}, not {steps}")
    return T


def _lam_range(schedule: Schedule, steps: int) -> list[float]:
    """Return lam at t = 1 and at T, or at T - 1 if T is pure noise, where lam is infinite."""
    last = _check_steps(schedule, steps) - int(schedule.has_zero_terminal_snr)
    return schedule.lam(torch.tensor([1, last], dtype=torch.float64)).flatten().tolist()


def _from_lam(schedule: Schedule, lam: Tensor) -> Tensor:
    t = schedule.time(lam).clamp(min=1)
    t[0] = schedule.num_steps
    return _append_zero(t)


def _append_zero(t: Tensor) -> Tensor:
    """Append 0 to the times."""
    return torch.cat([t, t.new_zeros(1)]).float()
