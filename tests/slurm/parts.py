"""What the test on a real SLURM gives a training: time for a signal to arrive in, or one at its last step."""

import os
import signal
import time
from typing import Any

from lightning import Callback, Trainer


class Slow(Callback):
    """Every step takes `seconds` more, until SLURM has queued the job again."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, *_: Any) -> None:
        """Wait."""
        if "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(self.seconds)


class SignalAtTheEnd(Callback):
    """Rank 0 is asked to stop in its last step."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """The scheduler's signal, to the moment."""
        if trainer.global_step == trainer.max_steps - 1 and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGUSR1)


class Hang(Callback):
    """Rank 1 never ends its fifth step."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Wait for nothing."""
        if trainer.global_step == 4 and trainer.global_rank == 1:
            time.sleep(3600)
