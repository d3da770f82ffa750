"""Callbacks for the test on a real SLURM: slow steps, a signal at the last step, a rank that hangs."""

import os
import signal
import time
from typing import Any

from lightning import Callback, Trainer


class Slow(Callback):
    """Make every step take `seconds` longer, until SLURM has requeued the job."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, *_: Any) -> None:
        """Wait."""
        if "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(self.seconds)


class SignalAtTheEnd(Callback):
    """Send rank 0 the signal to stop in its last step."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Send the signal in place of the scheduler."""
        if trainer.global_step == trainer.max_steps - 1 and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGUSR1)


class Hang(Callback):
    """Let rank 1 hang in its fifth step."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Hang."""
        if trainer.global_step == 4 and trainer.global_rank == 1:
            time.sleep(3600)
