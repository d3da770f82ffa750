"""Steps that would spoil the weights are not taken."""

import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning import Callback, Trainer
from torch import Tensor

from ldm.callbacks.checkpoint import checkpoints
from ldm.errors import UserError
from ldm.stages.base import Stage


class Guard(Callback):
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
            raise ValueError(
                "the guard needs factor > 1, window, patience and every_n_steps >= 1 and warmup >= 0, "
                f"not {factor}, {window}, {patience}, {every_n_steps} and {warmup}"
            )
        self.folder, self.factor, self.warmup, self.window = Path(folder), factor, warmup, window
        self.patience, self.every_n_steps = patience, every_n_steps
        self.state: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """Start from nothing or from what a checkpoint brought, and take the stage's gradients to judge."""
        optimizers = trainer.optimizers
        if not all(group.get("fused") for optimizer in optimizers for group in optimizer.param_groups):
            raise UserError(
                "callbacks.guard skips steps of fused optimizers alone: give optimizer.fused=true, "
                "or callbacks.guard=null to train without it"
            )
        zeros = torch.zeros(len(optimizers))
        fresh = {"log_mean": zeros, "seen": zeros, "skipped": zeros[0], "in_a_row": zeros[0]}
        self.state = {
            name: self.state.get(name, value).to(stage.device, copy=True) for name, value in fresh.items()
        }
        stage.judge = self.judge

    @torch.no_grad()
    def judge(self, norms: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """1 where the step must be skipped, else 0; good norms enter the running mean."""
        norms = norms.detach().to(torch.float32)
        log_mean, seen = self.state["log_mean"], self.state["seen"]
        log = norms.log()
        spike = (seen >= self.warmup) & (log > log_mean + math.log(self.factor))
        bad = spike.any() | ~norms.isfinite().all()
        counts = ~bad & (norms > 0)
        seen += counts
        log_mean += torch.where(counts, (log - log_mean) / seen.clamp(1, self.window), 0)
        self.state["skipped"] += bad
        self.state["in_a_row"].add_(1).mul_(bad)
        return bad.to(torch.float32)

    def on_train_batch_start(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        """The number of skipped steps into the log."""
        if stage.reports_next:
            stage.notes["train/skipped_steps"] = self.state["skipped"]

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        """End the run where nothing but bad steps came."""
        if trainer.global_step % self.every_n_steps == 0:
            in_a_row = int(self.state["in_a_row"])
            if in_a_row >= self.patience:
                raise UserError(self._verdict(trainer.global_step, in_a_row))

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
