"""Factors of the learning rate by step."""

import math

from ldm.errors import InvalidValue
from ldm.typing import NonNegativeInt, PositiveInt, Proportion


class WarmUp:
    """min((n + 1) / warmup_steps, 1): linear warm-up, then constant."""

    def __init__(self, warmup_steps: NonNegativeInt = 0) -> None:
        if warmup_steps < 0:
            raise InvalidValue(f"warmup_steps={warmup_steps}: expected 0 or more")
        self.warmup_steps = warmup_steps

    def __call__(self, step: int) -> float:
        """Return the factor at `step`, counted from 0."""
        return min((step + 1) / max(self.warmup_steps, 1), 1.0)


class WarmUpCosine:
    """Linear warm-up, then half a cosine down to `final` at `total_steps` (Loshchilov & Hutter 2017, (5))."""

    def __init__(
        self, total_steps: PositiveInt, warmup_steps: NonNegativeInt = 0, final: Proportion = 0.0
    ) -> None:
        if not 0 <= warmup_steps < total_steps:
            raise InvalidValue(
                f"warmup_steps={warmup_steps} must be at least 0 and less than total_steps={total_steps}"
            )
        self.total_steps, self.final = total_steps, final
        self.warmup = WarmUp(warmup_steps)

    def __call__(self, step: int) -> float:
        """Return the factor at `step`, counted from 0."""
        start = self.warmup.warmup_steps
        progress = min(max(step - start, 0) / (self.total_steps - start), 1.0)
        decay = self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
        return self.warmup(step) * decay
