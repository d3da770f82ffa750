"""On SIGTERM or SIGUSR1, save a checkpoint and exit with a status that makes SLURM requeue the job."""

import os
import signal
import sys
from typing import Annotated, Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from ldm.callbacks.checkpoint import Checkpoint
from ldm.callbacks.loggers.wandb import WandbLogger
from ldm.errors import UserError
from ldm.stages.base import Stage
from ldm.typing import Range

REQUEUE = 75
"""Exit status "temporary failure" (EX_TEMPFAIL in sysexits.h): start again with resume=auto."""
SIGNALS = ("SIGTERM", "SIGUSR1")
"""Sent by a scheduler before it stops a job, to all processes of the job or to one of them."""
NO_CHECKPOINTS = "callbacks.checkpoint=null saves no checkpoints"


class Preemption(Callback):
    """SIGTERM or SIGUSR1 sets a flag; at the end of the batch all ranks agree on it, save, and exit.

    The exit status is 75 after SIGUSR1, which announces the time limit, and `status` after SIGTERM. It is
    neither if the step could not be saved: a requeued job would lose its steps each time without notice.
    During validation ranks agree between batches; the validation ends there and is not logged.

    A signal handler must not save or communicate: it deadlocks if another rank is inside a collective. Ranks
    agree over gloo, so that no step waits for its GPU. Only rank 0 exits with the status, and last: both
    srun --kill-on-bad-exit and Lightning's launcher kill the remaining ranks and would report that instead.
    """

    def __init__(self, status: Annotated[int, Range(0, 255)] = REQUEUE) -> None:
        self.status = status
        self.requested = 0
        """0: none, 1: stop by SIGTERM, 2: stop by SIGUSR1."""
        self._group: dist.ProcessGroup | None = None
        self._previous_handlers: dict[str, Any] = {}

    def listen(self) -> None:
        """Install the handlers; a run that is still being built then stops after its first step."""
        self._previous_handlers = {
            name: signal.signal(getattr(signal, name), self._handle_signal) for name in SIGNALS
        }

    def _handle_signal(self, number: int, *_: Any) -> None:
        """Set the flag. Some schedulers send both signals; SIGUSR1, the time limit, takes precedence."""
        self.requested = max(self.requested, 1 + (number == signal.SIGUSR1))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Disable Lightning's own handlers and create a process group for the flag."""
        _disable_lightning_handlers(trainer)
        if trainer.world_size > 1:
            gloo = dist.get_backend() == "gloo"
            self._group = dist.group.WORLD if gloo else dist.new_group(backend="gloo")  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        """Save and exit if any rank was asked to stop; after the last step the run ends normally."""
        if trainer.global_step >= trainer.max_steps or not (requested := self._agree()):
            return
        savers = [c for c in trainer.callbacks if isinstance(c, Checkpoint)]  # type: ignore[attr-defined]
        problems = [saver.save(trainer) for saver in savers] or [NO_CHECKPOINTS]  # the same on all ranks
        if not trainer.is_global_zero:
            sys.stdout.flush()
            os._exit(0)
        if any(problems):
            raise UserError(
                f"asked to stop at step {trainer.global_step}, which could not be saved ({max(problems)}):"
                " fix that, then start again with resume=auto from the last checkpoint, if there is one"
            )
        status = REQUEUE if requested > 1 else self.status
        for logger in trainer.loggers:
            if status and isinstance(logger, WandbLogger):
                logger.mark_preempted()
        print(f"\nasked to stop: saved step {trainer.global_step}, exit status {status}", flush=True)
        raise SystemExit(status)

    def on_validation_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        """End validation if any rank was asked to stop; the run then saves after its next step."""
        if trainer.global_step < trainer.max_steps and self._agree():
            stage.validation_interrupted = True
            raise StopIteration  # ends the loop as an exhausted data loader does

    def _agree(self) -> int:
        """Return the largest flag of all ranks."""
        if self._group is None:
            return self.requested
        requested = torch.tensor(self.requested)
        dist.all_reduce(requested, dist.ReduceOp.MAX, self._group)
        return int(requested)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the previous handlers; a preempted run never gets here and ignores further signals."""
        for name, handler in self._previous_handlers.items():
            signal.signal(getattr(signal, name), handler)
        self._previous_handlers = {}


def _disable_lightning_handlers(trainer: Trainer) -> None:
    """Disable Lightning's signal handler, which calls a collective, and the broadcast at every batch."""
    loop, connector = trainer.fit_loop.epoch_loop, trainer._signal_connector
    assert callable(loop._broadcast_sigterm_tensor) and callable(connector.register_signal_handlers)
    loop._broadcast_sigterm_tensor = connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
