"""Skip optimizer steps whose gradients would ruin the weights."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning import Callback, Trainer
from torch import Tensor

from ldm.callbacks.checkpoint import list_checkpoints
from ldm.errors import Diverged, InvalidValue, UserError
from ldm.stages.base import Stage
from ldm.typing import Batch, NonNegativeInt, PositiveFloat, PositiveInt, Proportion

LOG = logging.getLogger(__name__)
LISTED_STEPS = 8
"""Number of skipped steps, the latest ones, that a warning lists."""
RECENT_STEPS = 1000
"""Number of steps over which the recent share of skipped ones is a running mean."""


class SkipBadSteps(Callback):
    """Skips steps whose gradient norm is not finite or more than `factor` times its running geometric mean.

    DDP has averaged the gradients, so the decision is the same on all ranks without communication. It stays
    on the device and reaches the fused optimizers as `found_inf`: there is no host sync, and the weights and
    optimizer moments do not change.

    Args:
        folder: folder of the checkpoints; the error that ends the run names the last good one.
        factor: a norm larger than this many times the mean is a spike. Norms of 0 do not enter the mean,
            such as the discriminator's before it is trained.
        warmup: number of good steps before spikes are detected.
        window: number of steps over which the mean is taken.
        patience: number of consecutive skipped steps that ends the run.
        every_n_steps: steps between warnings, and between checks of `patience`.
        max_share: largest share of skipped steps, of all steps and of the latest, with which a finished run
            counts as trained; else it ends with `Diverged` after its files are written. 1 accepts any.

    Steps are numbered as in metrics.csv. The counts are in the checkpoint: they are of the whole run, also if
    it was resumed.
    """

    def __init__(
        self,
        folder: str,
        factor: PositiveFloat = 100.0,
        warmup: NonNegativeInt = 100,
        window: PositiveInt = 100,
        patience: PositiveInt = 50,
        every_n_steps: PositiveInt = 50,
        max_share: Proportion = 0.1,
    ) -> None:
        if factor <= 1 or min(window, patience, every_n_steps) < 1 or warmup < 0 or not 0 <= max_share <= 1:
            raise InvalidValue(
                "skip_bad_steps needs factor > 1, window, patience and every_n_steps >= 1, warmup >= 0 and "
                f"max_share in [0, 1], not {factor=}, {window=}, {patience=}, {every_n_steps=}, {warmup=}, "
                f"{max_share=}"
            )
        self.folder, self.factor, self.warmup, self.window = Path(folder), factor, warmup, window
        self.patience, self.every_n_steps, self.max_share = patience, every_n_steps, max_share
        self.state: dict[str, Tensor] = {}
        self._position: Tensor | int = 0
        self._step = self._batch_size = self._num_reported = 0

    def on_fit_start(self, trainer: Trainer, stage: Stage) -> None:
        """Initialise the state, or move a checkpoint's to the device, and set the stage's `step_guard`."""
        optimizers = trainer.optimizers
        if not all(group.get("fused") for optimizer in optimizers for group in optimizer.param_groups):
            raise UserError(
                "callbacks.skip_bad_steps can only skip steps of fused optimizers: set optimizer.fused=true,"
                " or callbacks.skip_bad_steps=null to train without it"
            )
        zeros = torch.zeros(len(optimizers))
        counts = dict.fromkeys(("skipped", "in_a_row", "share"), zeros[0])
        latest = torch.zeros(LISTED_STEPS, dtype=torch.int64)  # steps, and the first position of each
        initial = {"log_mean": zeros, "seen": zeros, **counts}
        initial |= {"first": latest[0], "steps": latest, "positions": latest}
        self.state = {
            name: self.state.get(name, value).to(stage.device, copy=True) for name, value in initial.items()
        }
        self._num_reported = int(self.state["skipped"])
        stage.step_guard = self.check_norms

    @torch.no_grad()
    def check_norms(self, norms: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """Return 1 if the step must be skipped, else 0; update the running means if it is not."""
        norms = norms.detach().to(torch.float32)
        log_mean, seen = self.state["log_mean"], self.state["seen"]
        log_norms = norms.log()
        is_spike = (seen >= self.warmup) & (log_norms > log_mean + math.log(self.factor))
        is_bad = is_spike.any() | ~norms.isfinite().all()
        is_counted = ~is_bad & (norms > 0)
        seen += is_counted
        log_mean += torch.where(is_counted, (log_norms - log_mean) / seen.clamp(1, self.window), 0)
        slots = torch.arange(LISTED_STEPS, device=is_bad.device)
        next_slot = is_bad & (slots == self.state["skipped"] % LISTED_STEPS)
        self.state["steps"].masked_fill_(next_slot, self._step)
        self.state["positions"].masked_fill_(next_slot, self._position)
        self.state["first"].masked_fill_(is_bad & (self.state["skipped"] == 0), self._step)
        self.state["skipped"] += is_bad
        self.state["in_a_row"].add_(1).mul_(is_bad)
        self.state["share"].lerp_(is_bad.to(torch.float32), 1 / min(max(self._step, 1), RECENT_STEPS))
        return is_bad.to(torch.float32)

    def on_train_batch_start(self, trainer: Trainer, stage: Stage, batch: Batch, _: int) -> None:
        """Log the number of skipped steps."""
        positions = batch["position"]
        self._step, self._position = trainer.global_step + 1, positions[0]
        self._batch_size = len(positions) * trainer.world_size
        if stage.logs_this_step:
            stage.extra_metrics["train/skipped_steps"] = self.state["skipped"]

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        """Warn about skipped steps; end the run if the last `patience` steps were all skipped."""
        if trainer.global_step % self.every_n_steps == 0:
            self._warn(trainer)
            in_a_row = int(self.state["in_a_row"])
            if in_a_row >= self.patience:
                raise Diverged(self._explain_end(trainer.global_step, in_a_row))

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:
        """Warn about the steps skipped since the last warning."""
        self._warn(trainer)

    def on_fit_end(self, trainer: Trainer, stage: Stage) -> None:
        """Raise Diverged if too many steps were skipped; model file and checkpoint are written by then."""
        skipped, step = int(self.state["skipped"]), trainer.global_step
        recent = float(self.state["share"]) if step > RECENT_STEPS else 0.0
        if max(skipped / max(step, 1), recent) > self.max_share and trainer.is_global_zero:
            raise Diverged(self._explain_share(step, skipped))

    def _warn(self, trainer: Trainer) -> None:
        skipped = int(self.state["skipped"])
        if skipped > self._num_reported and trainer.is_global_zero:
            LOG.warning("%s", self._describe(skipped))
        self._num_reported = skipped

    def _describe(self, skipped: int) -> str:
        """Return a warning about newly skipped steps, with the positions of their samples."""
        steps, positions = self.state["steps"].tolist(), self.state["positions"].tolist()
        first = max(self._num_reported, skipped - LISTED_STEPS)
        latest = [(steps[n % LISTED_STEPS], positions[n % LISTED_STEPS]) for n in range(first, skipped)]
        listed = ", ".join(f"{s} (positions {p} to {p + self._batch_size - 1})" for s, p in latest)
        return f"skipped {skipped - self._num_reported} step(s), {skipped} in all; the latest: {listed}"

    def _explain_end(self, step: int, in_a_row: int) -> str:
        return f"the last {in_a_row} steps up to {step} were skipped{self._advise(step - in_a_row)}"

    def _explain_share(self, step: int, skipped: int) -> str:
        first, last = int(self.state["first"]), int(self.state["steps"].max())
        recent = f"{float(self.state['share']):.0%} of the latest; " if step > RECENT_STEPS else ""
        return (
            f"{skipped:,} of {step:,} steps were skipped ({recent}the first was {first:,}, the last {last:,})"
            f", more than callbacks.skip_bad_steps.max_share={self.max_share:g}{self._advise(first - 1)}"
        )

    def _advise(self, last_good_step: int) -> str:
        """Return the reason and what to do."""
        good = [path for number, path in list_checkpoints(self.folder) if number <= last_good_step]
        start = f"resume from the last good one, resume={good[-1]} run=FOLDER," if good else "start again"
        return (
            f", since their gradient norms were not finite or above {self.factor:g} times the mean: {start}"
            " with a lower optimizer.lr or trainer.precision=32-true"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the running means and counts."""
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the running means and counts."""
        self.state = state_dict
