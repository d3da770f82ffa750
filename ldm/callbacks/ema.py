"""Exponential moving average of the trainable parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from ldm.errors import InvalidValue
from ldm.stages.base import Stage
from ldm.typing import NonNegativeInt, Proportion


class EMA(Callback):
    """ema <- d ema + (1 - d) parameter after each step, with d = min(decay, (1 + n)/(10 + n)) after n steps.

    n counts from step `start`; until then the average equals the parameters. One multi-tensor operation over
    `stage.averaged_parameters()`, in fp32. A step that is skipped because its gradients overflow in fp16
    leaves the average as it is. Validation, preview images and the model file use the average.
    """

    def __init__(self, decay: Proportion = 0.9999, start: NonNegativeInt = 0) -> None:
        if not 0 <= decay < 1:
            raise InvalidValue(f"the EMA's decay must be in [0, 1), not {decay}")
        if start < 0:
            raise InvalidValue(f"the EMA's start must be a step >= 0, not {start}")
        self.decay, self.start = decay, start
        self.num_updates = 0
        self.averages: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, stage: Stage) -> None:
        """Initialise the averages with the parameters, or move those of a checkpoint to the device."""
        parameters = stage.averaged_parameters()
        start = self.averages or {name: p.detach() for name, p in parameters.items()}
        self.averages = {
            name: start[name].to(p.device, torch.float32, copy=True) for name, p in parameters.items()
        }

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        """Update the averages."""
        self.num_updates += 1
        n = self.num_updates - self.start
        decay = min(self.decay, (1 + n) / (10 + n)) if n > 0 else 0.0
        parameters = [p.float() for p in stage.averaged_parameters().values()]
        weight = 1 - decay
        if stage.overflow is None:
            torch._foreach_lerp_(list(self.averages.values()), parameters, weight)
        else:
            weights = [weight * (1 - stage.overflow)] * len(parameters)
            torch._foreach_lerp_(list(self.averages.values()), parameters, weights)

    @contextmanager
    def use_averages(self, stage: Stage) -> Iterator[None]:
        """Replace the stage's parameters by their averages within the block."""
        parameters = stage.averaged_parameters()
        in_training = {name: p.detach().clone() for name, p in parameters.items()}
        _copy(self.averages, parameters)
        try:
            yield
        finally:
            _copy(in_training, parameters)

    def on_validation_start(self, trainer: Trainer, stage: Stage) -> None:
        """Validate the averages."""
        self._swap = self.use_averages(stage)
        self._swap.__enter__()

    def on_validation_batch_end(
        self, trainer: Trainer, stage: Stage, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Measure the parameters in training on the same batch, in the precision of the validation step."""
        self._swap.__exit__(None, None, None)
        with trainer.strategy.precision_plugin.val_step_context():
            stage.measure(batch, "val/raw")
        self.on_validation_start(trainer, stage)

    def on_validation_end(self, trainer: Trainer, stage: Stage) -> None:
        """Restore the parameters in training."""
        self._swap.__exit__(None, None, None)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the number of updates."""
        return {"num_updates": self.num_updates, "averages": self.averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the averages and the number of updates."""
        self.num_updates, self.averages = state_dict["num_updates"], state_dict["averages"]


@torch.no_grad()
def _copy(values: dict[str, Tensor], parameters: dict[str, Any]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def find_ema(trainer: Trainer) -> EMA | None:
    """Return the trainer's EMA callback, None if it has none."""
    return next((c for c in trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]


@contextmanager
def use_ema_weights(trainer: Trainer, stage: Stage) -> Iterator[None]:
    """Replace the stage's parameters by their averages within the block; without EMA do nothing."""
    ema = find_ema(trainer)
    if ema is None:
        yield
    else:
        with ema.use_averages(stage):
            yield
