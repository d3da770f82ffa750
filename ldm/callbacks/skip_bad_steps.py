"""Steps that would spoil the weights are not taken."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning import Callback, Trainer
from torch import Tensor

from ldm.callbacks.checkpoint import checkpoints
from ldm.errors import InvalidValue, UserError
from ldm.stages.base import Stage
from ldm.typing import Batch

LOG = logging.getLogger(__name__)
NAMED = 8
"""Skipped steps that are named in one line of the log, the last ones."""


class SkipBadSteps(Callback):
    """Skips a step whose gradient norm is not finite or above `factor` times its running geometric mean.

    DDP has averaged the gradients, so every rank comes to the same verdict by itself. It stays on the device
    and reaches the fused optimizers as `found_inf`: nothing waits, and weights and moments stay as they were.

    Args:
        folder: where the checkpoints are, to name the last good one.
        factor: what a spike is; a norm of 0 is none, for a discriminator rests before its start.
        warmup: good steps before a spike is looked for.
        window: steps the mean looks back.
        patience: skipped steps in a row that end the run; counted every `every_n_steps`.
    """

    def __init__(
        self,
        folder: str,
        factor: float = 100.0,
        warmup: int = 100,
        window: int = 100,
        patience: int = 50,
        every_n_steps: int = 50,
    ) -> None:
        if factor <= 1 or min(window, patience, every_n_steps) < 1 or warmup < 0:
            raise InvalidValue(
                "the guard needs factor > 1, window, patience and every_n_steps >= 1 and warmup >= 0, "
                f"not {factor}, {window}, {patience}, {every_n_steps} and {warmup}"
            )
        self.folder, self.factor, self.warmup, self.window = Path(folder), factor, warmup, window
        self.patience, self.every_n_steps = patience, every_n_steps
        self.state: dict[str, Tensor] = {}
        self._step = self._batch = self._told = 0

    def on_fit_start(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """Start from nothing or from what a checkpoint brought, and take the stage's gradients to judge."""
        optimizers = trainer.optimizers
        if not all(group.get("fused") for optimizer in optimizers for group in optimizer.param_groups):
            raise UserError(
                "callbacks.skip_bad_steps skips steps of fused optimizers alone: give optimizer.fused=true, "
                "or callbacks.skip_bad_steps=null to train without it"
            )
        zeros = torch.zeros(len(optimizers))
        fresh = {"log_mean": zeros, "seen": zeros, "skipped": zeros[0], "in_a_row": zeros[0]}
        fresh["steps"] = torch.zeros(NAMED, dtype=torch.int64)
        self.state = {
            name: self.state.get(name, value).to(stage.device, copy=True) for name, value in fresh.items()
        }
        self._told = int(self.state["skipped"])
        stage.step_guard = self.step_guard

    @torch.no_grad()
    def step_guard(self, norms: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """1 where the step must be skipped, else 0; good norms enter the running mean."""
        norms = norms.detach().to(torch.float32)
        log_mean, seen = self.state["log_mean"], self.state["seen"]
        log = norms.log()
        spike = (seen >= self.warmup) & (log > log_mean + math.log(self.factor))
        bad = spike.any() | ~norms.isfinite().all()
        counts = ~bad & (norms > 0)
        seen += counts
        log_mean += torch.where(counts, (log - log_mean) / seen.clamp(1, self.window), 0)
        places = torch.arange(NAMED, device=bad.device)
        here = bad & (places == self.state["skipped"] % NAMED)
        self.state["steps"].masked_fill_(here, self._step)
        self.state["skipped"] += bad
        self.state["in_a_row"].add_(1).mul_(bad)
        return bad.to(torch.float32)

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, stage: Stage, batch: Batch, _: int
    ) -> None:
        """The number of skipped steps into the log."""
        self._step, self._batch = trainer.global_step, len(batch["position"]) * trainer.world_size
        if stage.reports_next:
            stage.extra_metrics["train/skipped_steps"] = self.state["skipped"]

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        """Name what was skipped; end the run where nothing but bad steps came."""
        if trainer.global_step % self.every_n_steps == 0:
            in_a_row, skipped = map(
                int, torch.stack([self.state["in_a_row"], self.state["skipped"]]).tolist()
            )
            if skipped > self._told and trainer.is_global_zero:
                LOG.warning("%s", self._named(skipped))
            self._told = skipped
            if in_a_row >= self.patience:
                raise UserError(self._verdict(trainer.global_step, in_a_row))

    def _named(self, skipped: int) -> str:
        """Which steps were skipped since this was last said, and what they read."""
        steps = self.state["steps"].tolist()
        last = [int(steps[n % NAMED]) for n in range(max(self._told, skipped - NAMED), skipped)]
        read = ", ".join(f"{s} (positions {s * self._batch} to {(s + 1) * self._batch - 1})" for s in last)
        return f"{skipped - self._told} steps were skipped, {skipped} in all; of these the last: {read}"

    def _verdict(self, step: int, in_a_row: int) -> str:
        good = [path for number, path in checkpoints(self.folder) if number <= step - in_a_row]
        last = f"go on from the last good checkpoint, resume={good[-1]}," if good else "begin again"
        return (
            f"the last {in_a_row} steps up to {step} were skipped, their gradients not finite or above "
            f"{self.factor:g} times the usual: {last} with a lower optimizer.lr or trainer.precision=32-true"
        )

    def state_dict(self) -> dict[str, Any]:
        """The running means and counts."""
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Judge on as before."""
        self.state = state_dict
