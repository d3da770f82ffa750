"""End a hanging run after each rank has written its stack trace."""

import faulthandler
import signal
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lightning import Callback, LightningModule, Trainer

from ldm.errors import InvalidValue
from ldm.typing import PositiveFloat

GRACE = 30.0
"""Seconds between a rank's stack trace and its SIGALRM, so that all write theirs before srun ends them."""


class Watchdog(Callback):
    """A timer: after `seconds` without progress, a rank writes its stack trace and is ended by SIGALRM.

    Rank 0 writes to `folder/rank0.txt`. The trace is written by a C thread and the signal sent by the kernel,
    since a hanging process may never run Python code again. Collectives time out as well, but later (after
    half an hour, `ldm.cli.training.setup`) and without showing where the ranks hang.
    """

    def __init__(self, folder: str, seconds: PositiveFloat = 900.0, grace: PositiveFloat = GRACE) -> None:
        if seconds <= 0:
            raise InvalidValue(
                f"seconds must be above 0, not {seconds}: set callbacks.watchdog=null to disable the watchdog"
            )
        self.folder, self.seconds, self.grace = Path(folder), seconds, grace
        self._file: IO[str] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the timer, which covers the first step as well."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.folder / f"rank{trainer.global_rank}.txt", "w")
        self._restart_timer()

    def _restart_timer(self, *_: Any, **__: Any) -> None:
        """Restart the timer with `seconds` to go."""
        if self._file is not None:
            faulthandler.dump_traceback_later(self.seconds, file=self._file)
            signal.setitimer(signal.ITIMER_REAL, self.seconds + self.grace)

    on_train_batch_start = on_train_batch_end = _restart_timer
    on_validation_batch_start = on_validation_end = on_save_checkpoint = _restart_timer

    def _stop(self, *_: Any, **__: Any) -> None:
        """Stop the timer and remove the file if it is empty."""
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._file.close()
            path, self._file = Path(self._file.name), None
            if path.stat().st_size == 0:
                path.unlink()
                with suppress(OSError):  # another rank still has a file in it, or has removed the folder
                    self.folder.rmdir()

    on_train_end = on_exception = teardown = _stop
