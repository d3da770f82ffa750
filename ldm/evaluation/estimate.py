"""A score of many pictures, with its 95 % interval."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ldm import keyed
from ldm.evaluation.alignment import wilson


@dataclass(frozen=True)
class Estimate:
    """A mean over n pictures and its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def estimate(values: Bool[Tensor, " n"] | Float[Tensor, " n"]) -> Estimate:
    """A share with Wilson's interval of what is right or wrong; a mean with its bootstrap's of numbers."""
    n = len(values)
    if n == 0:
        raise ValueError("0 pictures have no score")
    if values.dtype == torch.bool:
        right = int(values.sum())
        return Estimate(right / n, *wilson(right, n), n)
    return Estimate(values.mean().item(), *bootstrap(values), n)


def bootstrap(values: Float[Tensor, " n"], rounds: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles of the means of resamples (Efron & Tibshirani 1993, section 13.3)."""
    places = torch.randint(
        len(values), (rounds, len(values)), generator=keyed.generator(seed, 0, "bootstrap")
    )
    low, high = values.double()[places].mean(1).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high


def gap_closed(score: Estimate, null: Estimate, ceiling: Estimate) -> float:
    """(score - null)/(ceiling - null); nan where there is no gap."""
    gap = ceiling.value - null.value
    return (score.value - null.value) / gap if gap else float("nan")


def apart(a: Estimate, b: Estimate) -> bool:
    """Whether two intervals have no point in common."""
    return a.low > b.high or b.low > a.high
