"""A step that hangs ends, and says where."""

import faulthandler
import sys
from typing import Any

from lightning import Callback, LightningModule, Trainer

from ldm.stages.base import Stage


class Watchdog(Callback):
    """Where no batch ends for `seconds`, the stacks of all threads go to stderr and the process exits with 1.

    The clock is faulthandler's, a thread without Python, which goes on where the interpreter stands still.
    Ranks wait for each other, so each of them comes to this end, and its launcher ends the job. Waiting for
    data and saving count; validation does not.
    """

    def __init__(self, seconds: float = 1800.0) -> None:
        if seconds <= 0:
            raise ValueError(f"the watchdog waits for more than {seconds} seconds")
        self.seconds = seconds
        self._on = False

    def _watch(self) -> None:
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__ or 2)

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """The first batch, for which workers start and kernels compile, has as long as any."""
        self._on = True
        self._watch()

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        """From the beginning."""
        self._watch()

    def on_validation_start(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """It may take its time."""
        faulthandler.cancel_dump_traceback_later()

    def on_validation_end(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """Training goes on."""
        if self._on:
            self._watch()

    def on_exception(self, trainer: Trainer, stage: Stage, exception: BaseException) -> None:  # type: ignore[override]
        """A failure is not a hang."""
        self._on = False
        faulthandler.cancel_dump_traceback_later()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """What the process does next may take its time."""
        self._on = False
        faulthandler.cancel_dump_traceback_later()
