"""Exponential moving average of the trainable parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from ldm.errors import InvalidValue
from ldm.stages.base import Stage


class EMA(Callback):
    """ema <- d ema + (1 - d) parameter after each step, with d = min(decay, (1 + n)/(10 + n)) after n steps.

    n counts from the step `start`; until then the average is the parameters themselves. One multi-tensor
    operation over `stage.averaged_parameters()`, in fp32. Validation, images and the model file use the
    average.
    """

    def __init__(self, decay: float = 0.9999, start: int = 0) -> None:
        if not 0 <= decay < 1:
            raise InvalidValue(f"the EMA's decay must lie in [0, 1), not {decay}")
        if start < 0:
            raise InvalidValue(f"the EMA's start must be a step >= 0, not {start}")
        self.decay, self.start = decay, start
        self.num_updates = 0
        self.averages: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """Start from the parameters, or move what a checkpoint brought to the device."""
        parameters = stage.averaged_parameters()
        start = self.averages or {name: p.detach() for name, p in parameters.items()}
        self.averages = {
            name: start[name].to(p.device, torch.float32, copy=True) for name, p in parameters.items()
        }

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        """One update."""
        self.num_updates += 1
        n = self.num_updates - self.start
        decay = min(self.decay, (1 + n) / (10 + n)) if n > 0 else 0.0
        parameters = [p.float() for p in stage.averaged_parameters().values()]
        torch._foreach_lerp_(list(self.averages.values()), parameters, 1 - decay)

    @contextmanager
    def applied(self, stage: Stage) -> Iterator[None]:
        """The averages stand in the parameters' place within the block."""
        parameters = stage.averaged_parameters()
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        _copy(self.averages, parameters)
        try:
            yield
        finally:
            _copy(kept, parameters)

    def on_validation_start(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """Validate the average."""
        self._swap = self.applied(stage)
        self._swap.__enter__()

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: Trainer, stage: Stage, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """The parameters in training on the same batch, in the precision of the validation step."""
        self._swap.__exit__(None, None, None)
        with trainer.strategy.precision_plugin.val_step_context():
            stage.measure(batch, "val/raw")
        self.on_validation_start(trainer, stage)

    def on_validation_end(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """Back to the parameters in training."""
        self._swap.__exit__(None, None, None)

    def state_dict(self) -> dict[str, Any]:
        """The averages and the number of updates."""
        return {"num_updates": self.num_updates, "averages": self.averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly."""
        self.num_updates, self.averages = state_dict["num_updates"], state_dict["averages"]


@torch.no_grad()
def _copy(values: dict[str, Tensor], parameters: dict[str, Any]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def find_ema(trainer: Trainer) -> EMA | None:
    """The trainer's EMA callback, where it has one."""
    return next((c for c in trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]


@contextmanager
def use_ema_weights(trainer: Trainer, stage: Stage) -> Iterator[None]:
    """`stage` with its averages in place, or as it is in a run without EMA."""
    ema = find_ema(trainer)
    if ema is None:
        yield
    else:
        with ema.applied(stage):
            yield
