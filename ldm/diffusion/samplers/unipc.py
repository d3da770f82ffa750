"""UniPC: a predictor, and a corrector that needs no extra evaluation (Zhao et al. 2023)."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Annotated, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers.steps import Point, exp_step_z0, is_finite, schedule_points
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue
from ldm.typing import Range

PastPrediction: TypeAlias = tuple[Point, Tensor]
"""A time, and the prediction of z_0 there."""


def bh1(x: float) -> float:
    """B(x) = x (Zhao et al. 2023, section 3.1)."""
    return x


def bh2(x: float) -> float:
    """B(x) = e^x - 1 (Zhao et al. 2023, section 3.1)."""
    return math.expm1(x)


def unipc(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
    order: Annotated[int, Range(1, 3)],
    b: Callable[[float], float],
) -> Iterator[Float[Tensor, "b z h w"]]:
    """UniPC-p with the prediction of z_0 (Zhao et al. 2023, algorithms 1 and 2), p = `order`, B = `b`.

    Yields the predictor's z_s; once z_0 is predicted there, the corrector repeats the step with it before the
    next one. The first steps have the order that the predictions so far allow.
    """
    if order not in (1, 2, 3):
        raise InvalidValue(f"UniPC's order must be 1, 2 or 3, not {order}")
    z_t, z_r, history = z_T, z_T, list[PastPrediction]()
    for t, s in pairwise(schedule_points(schedule, times)):
        z_0, _ = denoise(z_t, t.time)
        if history:
            z_t = _step(z_r, t, history, [*history[1:], (t, z_0)], b)
        if math.isfinite(t.lam):
            history = [(t, z_0), *history][:order]
        z_r = z_t
        z_t = _step(z_t, s, history, history[1:], b) if is_finite(t, s) else exp_step_z0(z_t, z_0, t, s)
        yield z_t


def _step(
    z_t: Tensor,
    s: Point,
    history: list[PastPrediction],
    others: list[PastPrediction],
    b: Callable[[float], float],
) -> Tensor:
    """z_s = (sigma_s/sigma_t) z_t - alpha_s [(e^-h - 1) z_0 + B(-h) sum_k (a_k/r_k) (z_0,k - z_0)],

    r_k = (lam_k - lam_t)/h. The step starts at the newest prediction of `history`; the sum is over `others`.
    """
    t, z_0 = history[0]
    h = s.lam - t.lam
    ratios = [(k.lam - t.lam) / h for k, _ in others]
    z_s = exp_step_z0(z_t, z_0, t, s)
    for a, r, (_, z_0_k) in zip(_weights(ratios, -h, b), ratios, others, strict=True):
        z_s = z_s - s.alpha * b(-h) * a / r * (z_0_k - z_0)
    return z_s


def _weights(ratios: list[float], x: float, b: Callable[[float], float]) -> list[float]:
    """a with sum_k a_k r_k^(n-1) = n! x phi_(n+1)(x) / B(x), n = 1, 2, ... (Zhao et al. 2023, theorem 3.1),

    phi_1(x) = (e^x - 1)/x, phi_(n+1)(x) = (phi_n(x) - 1/n!)/x.
    A single weight is 1/2, which is accurate enough for its order.
    """
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    phi, rows, targets = math.expm1(x) / x, list[list[float]](), list[float]()
    for n in range(1, len(ratios) + 1):
        phi = (phi - 1 / math.factorial(n)) / x
        rows.append([r ** (n - 1) for r in ratios])
        targets.append(math.factorial(n) * x * phi / b(x))
    matrix, values = torch.tensor(rows, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)
    return torch.linalg.solve(matrix, values).tolist()
