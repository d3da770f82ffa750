"""On SIGTERM, SIGUSR1 or Ctrl-C, save a checkpoint and exit; the status says whether to start again."""

import os
import signal
import sys
import time
from contextlib import suppress
from typing import Annotated, Any, NoReturn

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
INTERRUPTED = 130
"""Exit status after Ctrl-C, as that of any program that SIGINT ends."""
PRIORITY = {"SIGTERM": 1, "SIGUSR1": 2, "SIGINT": 3}
"""The signals to stop: a scheduler sends the first two to all processes of a job or to one of them, a
terminal sends SIGINT for Ctrl-C. Of several, the one with the highest number counts."""
REPEATED_AFTER = 1.0
"""Seconds after which SIGINT is a second Ctrl-C; before that it is torchrun's, which passes on the first."""
ANNOUNCEMENT = b"\nCtrl-C: saving after this step and ending; press it again to end at once\n"
NO_CHECKPOINTS = "callbacks.checkpoint=null saves no checkpoints"


class Preemption(Callback):
    """A signal to stop sets a flag; at the end of the batch all ranks agree on it, save, and exit.

    The exit status is 75 after SIGUSR1, which announces the time limit, and `status` after SIGTERM. It is
    neither if the step could not be saved: a requeued job would lose its steps each time without notice.
    It is 130 after Ctrl-C (SIGINT), which ends the run at once before its first step, or the second time.
    During validation ranks agree between batches; the validation ends there and is not logged.

    A signal handler must not save or communicate: it deadlocks if another rank is inside a collective. Ranks
    agree over gloo, so that no step waits for its GPU. Only rank 0 exits with the status, and last: both
    srun --kill-on-bad-exit and Lightning's launcher kill the remaining ranks and would report that instead.
    """

    def __init__(self, status: Annotated[int, Range(0, 255)] = REQUEUE) -> None:
        self.status = status
        self.requested = 0
        """The priority of the signal to stop; 0 without one."""
        self._has_started = self._announces = False
        self._interrupt_time = 0.0
        self._group: dist.ProcessGroup | None = None
        self._previous_handlers: dict[str, Any] = {}

    def listen(self) -> None:
        """Install the handlers; a run that is still being built then stops after its first step."""
        is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as in a shell's background jobs
        self._previous_handlers = {
            name: signal.signal(getattr(signal, name), self._handle_signal)
            for name in PRIORITY
            if not (name == "SIGINT" and is_ignored)
        }

    def _handle_signal(self, number: int, *_: Any) -> None:
        """Set the flag, or raise KeyboardInterrupt for a Ctrl-C that need not or must not wait."""
        if number == signal.SIGINT:
            self._handle_interrupt()
        self.requested = max(self.requested, PRIORITY[signal.Signals(number).name])

    def _handle_interrupt(self) -> None:
        now, is_first = time.monotonic(), not self._interrupt_time
        if not self._has_started or (not is_first and now - self._interrupt_time > REPEATED_AFTER):
            raise KeyboardInterrupt
        if is_first:
            self._interrupt_time = now
            if self._announces:
                with suppress(OSError):
                    os.write(2, ANNOUNCEMENT)  # print must not be called in a signal handler

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Disable Lightning's own handlers and create a process group for the flag."""
        _disable_lightning_handlers(trainer)
        self._announces = trainer.is_global_zero
        if trainer.world_size > 1:
            gloo = dist.get_backend() == "gloo"
            self._group = dist.group.WORLD if gloo else dist.new_group(backend="gloo")  # type: ignore[assignment]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let several ranks, which may start their first step at different times, stop together after it."""
        self._has_started = trainer.world_size > 1

    def on_train_batch_start(self, *_: Any) -> None:
        """Note that there is a step to save from now on."""
        self._has_started = True

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        """Save and exit if any rank was asked to stop; after the last step the run ends normally."""
        if trainer.global_step >= trainer.max_steps or not (requested := self._agree()):
            return
        savers = [c for c in trainer.callbacks if isinstance(c, Checkpoint)]  # type: ignore[attr-defined]
        problems = [saver.save(trainer) for saver in savers] or [NO_CHECKPOINTS]  # the same on all ranks
        if not trainer.is_global_zero:
            sys.stdout.flush()
            os._exit(0)
        status = {PRIORITY["SIGTERM"]: self.status, PRIORITY["SIGINT"]: INTERRUPTED}.get(requested, REQUEUE)
        self._exit(trainer, status, max(problems))

    def _exit(self, trainer: Trainer, status: int, problem: str) -> NoReturn:
        """Exit with `status`; without one if the step could not be saved, unless the user asked to stop."""
        step = trainer.global_step
        if problem and status != INTERRUPTED:
            raise UserError(
                f"asked to stop at step {step}, which could not be saved ({problem}): fix that, then start"
                " again with resume=auto from the last checkpoint, if there is one"
            )
        for logger in trainer.loggers:
            if status not in (0, INTERRUPTED) and isinstance(logger, WandbLogger):
                logger.mark_preempted()
        result = f"step {step} could not be saved ({problem})" if problem else f"saved step {step}"
        with suppress(OSError):  # Ctrl-C ends also `| tee`
            print(f"\nasked to stop: {result}, exit status {status}", flush=True)
        raise SystemExit(status)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let W&B show a run that Ctrl-C ended as killed."""
        is_interrupted = isinstance(exception, KeyboardInterrupt)
        is_interrupted |= isinstance(exception, SystemExit) and exception.code == INTERRUPTED
        for logger in trainer.loggers:
            if is_interrupted and isinstance(logger, WandbLogger):
                logger.mark_interrupted()

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
