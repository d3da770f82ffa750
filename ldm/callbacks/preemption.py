"""A run that is told to go: it saves, and exits with a status for which a job script queues it again."""

import os
import signal
import sys
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from ldm.callbacks.checkpoint import Checkpoint
from ldm.callbacks.loggers.wandb import WandbLogger
from ldm.errors import UserError
from ldm.stages.base import Stage

REQUEUE = 75
"""Exit status "temporary failure" (EX_TEMPFAIL in sysexits.h): start again with resume=auto."""
SIGNALS = ("SIGTERM", "SIGUSR1")
"""Sent by a scheduler before it stops a job, to all processes of the job or to one of them."""
NO_CHECKPOINTS = "callbacks.checkpoint=null keeps no checkpoints"


class Preemption(Callback):
    """SIGTERM or SIGUSR1 sets a flag; ranks agree at the end of a batch, save, and exit.

    The status is 75 after SIGUSR1, which a time limit sends, and `status` after SIGTERM. Where nothing could
    be saved it is neither: queued again, the run would lose its steps each time, and nobody would see it.
    In validation it is asked between batches; that validation ends there and is not recorded.

    A handler that saves, or that talks to other ranks, deadlocks where another rank is inside a collective.
    Ranks agree over gloo, so that no step waits for its GPU. Rank 0 alone exits with the status, and last:
    srun --kill-on-bad-exit, as Lightning's launcher, kills whoever is still there, and would report that.
    """

    def __init__(self, status: int = REQUEUE) -> None:
        self.status = status
        self.asked = 0
        self._group: dist.ProcessGroup | None = None
        self._before: dict[str, Any] = {}

    def listen(self) -> None:
        """From here on the signals are noted; a run that is still being built goes after its first step."""
        self._before = {name: signal.signal(getattr(signal, name), self._note) for name in SIGNALS}

    def _note(self, number: int, *_: Any) -> None:
        """SIGUSR1 counts more than SIGTERM: some schedulers send both, and the time limit decides."""
        self.asked = max(self.asked, 1 + (number == signal.SIGUSR1))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Switch Lightning's own handlers off, and meet the other ranks."""
        _silence(trainer)
        if trainer.world_size > 1:
            gloo = dist.get_backend() == "gloo"
            self._group = dist.group.WORLD if gloo else dist.new_group(backend="gloo")  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        """Save and leave, if any rank was asked to; a run at its last step ends as it is."""
        if trainer.global_step >= trainer.max_steps or not (asked := self._agreed()):
            return
        savers = [c for c in trainer.callbacks if isinstance(c, Checkpoint)]  # type: ignore[attr-defined]
        problems = [saver.save(trainer) for saver in savers] or [NO_CHECKPOINTS]  # known to all ranks
        if not trainer.is_global_zero:
            sys.stdout.flush()
            os._exit(0)
        if any(problems):
            raise UserError(
                f"asked to stop at step {trainer.global_step}, which is not saved ({max(problems)}): mend "
                "that, and go on with resume=auto from the last checkpoint, if there is one"
            )
        status = REQUEUE if asked > 1 else self.status
        for logger in trainer.loggers:
            if status and isinstance(logger, WandbLogger):
                logger.preempted()
        print(f"\nasked to stop: saved step {trainer.global_step}, exit status {status}", flush=True)
        raise SystemExit(status)

    def on_validation_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        """End validation if any rank was asked to stop: the run then saves after its next step."""
        if trainer.global_step < trainer.max_steps and self._agreed():
            stage.validation_interrupted = True
            raise StopIteration  # how a loader that has come to its end tells the loop

    def _agreed(self) -> int:
        """Whether any rank was asked: 0, 1 by SIGTERM, 2 by SIGUSR1."""
        if self._group is None:
            return self.asked
        asked = torch.tensor(self.asked)
        dist.all_reduce(asked, dist.ReduceOp.MAX, self._group)
        return int(asked)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The signals mean again what they meant; a preempted run never comes here and stays deaf to them."""
        for name, handler in self._before.items():
            signal.signal(getattr(signal, name), handler)
        self._before = {}


def _silence(trainer: Trainer) -> None:
    """Lightning's handler calls a collective, and its loop broadcasts and reads a flag at every batch."""
    loop, connector = trainer.fit_loop.epoch_loop, trainer._signal_connector
    assert callable(loop._broadcast_sigterm_tensor) and callable(connector.register_signal_handlers)
    loop._broadcast_sigterm_tensor = connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
