"""How t is drawn in training, and how it is spaced in sampling.

A spacing is called as `spacing(schedule, steps)`; those of whole times need no more of it than T.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue


class UniformTimes:
    """t uniform on 1..T (Ho et al. 2020, algorithm 1)."""

    def __init__(self, num_steps: int) -> None:
        _check_num_steps(num_steps)
        self.num_steps = num_steps

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """t from u ~ U[0, 1)."""
        return (u * self.num_steps).floor() + 1


class LogitNormalTimes:
    """logit(t/T) ~ N(mean, std²) (Esser et al. 2024, section 3.1); mean > 0 leans to noise."""

    def __init__(self, num_steps: int, mean: float = 0.0, std: float = 1.0) -> None:
        _check_num_steps(num_steps)
        _check_std("logit-normal", std)
        self.num_steps, self.mean, self.std = num_steps, mean, std

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """t from u ~ U[0, 1)."""
        t = torch.sigmoid(self.mean + self.std * _normal(u)) * self.num_steps
        return t.ceil().clamp(1, self.num_steps).to(u.dtype)


class LogNormalTimes:
    """log(sigma/alpha) ~ N(mean, std²), real t within 1..T (Karras et al. 2022, table 1: P_mean, P_std)."""

    def __init__(self, schedule: Schedule, mean: float = -1.2, std: float = 1.2) -> None:
        _check_std("log-normal", std)
        self.schedule, self.mean, self.std = schedule, mean, std

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """t from u ~ U[0, 1)."""
        t = self.schedule.time(-(self.mean + self.std * _normal(u)).to(u.dtype))
        return t.clamp(1, self.schedule.num_steps)


class ShiftedTimes:
    """t' = s t/(1 + (s - 1) t/T) of other times' t (Esser et al. 2024, eq. 23): s > 1 leans to noise.

    On a rectified flow it multiplies sigma/alpha by s, as training at s times the resolution asks for.
    """

    def __init__(self, times: Callable[[Tensor], Tensor], num_steps: int, shift: float = 3.0) -> None:
        _check_num_steps(num_steps)
        if shift <= 0:
            raise InvalidValue(f"times are shifted by a factor > 0, not {shift}")
        self.times, self.num_steps, self.shift = times, num_steps, shift

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """t from u ~ U[0, 1)."""
        t = self.times(u)
        t = self.shift * t / (1 + (self.shift - 1) * t / self.num_steps)
        return t.clamp(1, self.num_steps)


def stratified(u: Float[Tensor, " b"], position: Int64[Tensor, " b"], strata: int) -> Float[Tensor, " b"]:
    """u' = (position mod B + u)/B: of the B samples of a global batch, one u' in each B-th of [0, 1).

    Kingma et al. 2021, appendix I.1, with a u for each sample. Position p is the (p mod B)-th of its batch on
    whatever rank, so nothing is exchanged; B = 1 leaves u as it is.
    """
    if strata < 1:
        raise InvalidValue(f"u is drawn in strata >= 1 parts of [0, 1), not {strata}")
    spread = ((position % strata).double() + u.double()) / strata
    return spread.to(u.dtype).clamp(max=1 - torch.finfo(u.dtype).eps / 2)  # rounding may reach 1


def deterministic_u(position: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
    """u = frac(1/2 + p (sqrt 5 - 1)/2): the golden ratio's multiples fill [0, 1) evenly, however many.

    Validation's u, in place of random ones: the noise levels that a image is measured at never change.
    """
    u = (0.5 + position.double() * (math.sqrt(5) - 1) / 2).frac().float()
    return u.clamp(max=1 - torch.finfo(torch.float32).eps / 2)


def leading(schedule: Schedule | int, steps: int) -> Float[Tensor, " s"]:
    """t_i = floor(i T/S) + 1, falling, then 0: DDIM's (Song et al. 2021), within 1..T for all S."""
    T = _check(schedule, steps)
    return _ending(torch.arange(steps - 1, -1, -1) * T // steps + 1)


def trailing(schedule: Schedule | int, steps: int) -> Float[Tensor, " s"]:
    """t_i = round(T - i T/S), then 0: starts at pure noise, T (Lin et al. 2024, table 2)."""
    T = _check(schedule, steps)
    return _ending((T - torch.arange(steps).double() * T / steps + 0.5).floor())


def linspace(schedule: Schedule | int, steps: int) -> Float[Tensor, " s"]:
    """S equal steps from T to 1, then 0 (Nichol & Dhariwal 2021, section 4)."""
    T = _check(schedule, steps)
    span = (T - 1) / max(steps - 1, 1)
    return _ending((T - torch.arange(steps).double() * span + 0.5).floor())


def karras(schedule: Schedule, steps: int, rho: float = 7.0) -> Float[Tensor, " s"]:
    """(sigma/alpha)^(1/rho) in S equal steps from T to 1, then 0 (Karras et al. 2022, eq. 5)."""
    if rho <= 0:
        raise InvalidValue(f"Karras' spacing needs rho > 0, not {rho}")
    clean, noisy = (math.exp(-lam / rho) for lam in _ends(schedule, steps))
    root = torch.linspace(noisy, clean, steps, dtype=torch.float64)
    return _from_lam(schedule, -rho * root.log())


def exponential(schedule: Schedule, steps: int) -> Float[Tensor, " s"]:
    """lam in S equal steps from T to 1, then 0 (Lu et al. 2022a, section 3.4): Karras' at infinite rho."""
    clean, noisy = _ends(schedule, steps)
    return _from_lam(schedule, torch.linspace(noisy, clean, steps, dtype=torch.float64))


def explicit(schedule: Schedule, steps: int, times: Sequence[float]) -> Float[Tensor, " s"]:
    """The falling `times`, then 0; for another number of steps lam is interpolated over their index.

    So the optimised lists of Sabour et al. (2024, "Align Your Steps") are meant to be used.
    """
    _check(schedule, steps)
    given = torch.tensor([float(t) for t in times], dtype=torch.float64)
    if len(given) < 2 or given[0] > schedule.num_steps or given[-1] < 1 or (given.diff() >= 0).any():
        raise InvalidValue(
            f"a list of times holds 2 or more that fall, in 1..{schedule.num_steps}, not {times}"
        )
    if steps == len(given):
        return _ending(given)
    place = torch.linspace(0, len(given) - 1, steps, dtype=torch.float64)
    low = place.long().clamp(max=len(given) - 2)
    lam = schedule.lam(given).flatten().clamp(min=_ends(schedule, steps)[1])
    t = schedule.time(torch.lerp(lam[low], lam[low + 1], place - low))
    t[0] = given[0]
    return _ending(t)


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise InvalidValue(f"times of training lie in 1..num_steps, num_steps >= 1, not {num_steps}")


def _check_std(name: str, std: float) -> None:
    if std <= 0:
        raise InvalidValue(f"{name} times need std > 0, not {std}")


def _normal(u: Tensor) -> Tensor:
    """N(0, 1) from U[0, 1), in double precision."""
    return torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7))


def _check(schedule: Schedule | int, steps: int) -> int:
    """T, of a schedule or as it is."""
    T = schedule if isinstance(schedule, int) else schedule.num_steps
    if not 1 <= steps <= T:
        raise InvalidValue(f"sampling steps must lie in 1..{T}, not {steps}")
    return T


def _ends(schedule: Schedule, steps: int) -> list[float]:
    """lam at t = 1 and at T, or at T - 1 where T is pure noise and has no finite lam."""
    last = _check(schedule, steps) - int(schedule.has_zero_terminal_snr)
    return schedule.lam(torch.tensor([1, last], dtype=torch.float64)).flatten().tolist()


def _from_lam(schedule: Schedule, lam: Tensor) -> Tensor:
    t = schedule.time(lam).clamp(min=1)
    t[0] = schedule.num_steps
    return _ending(t)


def _ending(t: Tensor) -> Tensor:
    """The times, and 0 after them."""
    return torch.cat([t, t.new_zeros(1)]).float()
