"""Building blocks of samplers: the coefficients at a time, and steps for constant predictions."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue


class Point(NamedTuple):
    """A time with its alpha, sigma and lam = log(alpha / sigma), in double precision."""

    time: Tensor
    alpha: float
    sigma: float
    lam: float


def schedule_points(schedule: Schedule, times: Float[Tensor, " s"]) -> list[Point]:
    """Return the coefficients at all times, computed on the CPU so that no step waits for the device.

    Raises ValueError unless all times lie in 0..T.
    """
    t, T = times.cpu().double(), schedule.num_steps
    if t.min() < 0 or t.max() > T:
        raise InvalidValue(f"sampling times must lie in 0..{T}, not {times.tolist()}")
    alpha, sigma, lam = (f(t).flatten().tolist() for f in (schedule.alpha, schedule.sigma, schedule.lam))
    return [Point(*values) for values in zip(times, alpha, sigma, lam, strict=True)]


def at_lam(schedule: Schedule, lam: float, like: Point) -> Point:
    """Return the point of the schedule at `lam`; its time has the dtype of `like.time`."""
    time = schedule.time(torch.tensor([lam], dtype=torch.float64))
    (point,) = schedule_points(schedule, time.to(like.time.dtype))
    return point


def lam_midpoint(schedule: Schedule, t: Point, s: Point, share: float) -> Point:
    """Return the point at the fraction `share` of the way from t to s in lam."""
    return at_lam(schedule, t.lam + share * (s.lam - t.lam), t)


def is_finite(t: Point, s: Point) -> bool:
    """Return whether lam is finite at both ends: t is not pure noise and s is not 0."""
    return math.isfinite(t.lam) and math.isfinite(s.lam)


def exp_step_z0(
    z_t: Float[Tensor, "b z h w"], z_0: Float[Tensor, "b z h w"], t: Point, s: Point
) -> Float[Tensor, "b z h w"]:
    """z_s = (sigma_s/sigma_t) z_t + alpha_s (1 - e^-h) z_0, h = lam_s - lam_t (Lu et al. 2022b, section 4.1).

    The ODE's solution for a predicted z_0 that is constant over the step.
    """
    return s.sigma / t.sigma * z_t - s.alpha * math.expm1(t.lam - s.lam) * z_0


def exp_step_eps(
    z_t: Float[Tensor, "b z h w"], eps: Float[Tensor, "b z h w"], t: Point, s: Point
) -> Float[Tensor, "b z h w"]:
    """z_s = (alpha_s/alpha_t) z_t - sigma_s (e^h - 1) eps, h = lam_s - lam_t (Lu et al. 2022a, eq. 3.7).

    The ODE's solution for a predicted eps that is constant over the step.
    """
    return s.alpha / t.alpha * (z_t - t.sigma * eps) + s.sigma * eps
