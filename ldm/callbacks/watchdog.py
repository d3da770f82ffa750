"""End a run that hangs, with the stack of every rank."""

import faulthandler
import signal
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lightning import Callback, LightningModule, Trainer

from ldm.errors import InvalidValue

GRACE = 30.0
"""Seconds between a rank's stack and its end, when srun kills the other ranks: theirs are written by then."""


class Watchdog(Callback):
    """Without progress for `seconds`, a rank writes its stack to `folder/rank0.txt` and dies of SIGALRM.

    C code and the kernel do both, since a hung process may never run Python again. Collectives time out by
    themselves, but later (half an hour, `ldm.cli.training.setup`) and without showing where the ranks hang.
    """

    def __init__(self, folder: str, seconds: float = 900.0, grace: float = GRACE) -> None:
        if seconds <= 0:
            raise InvalidValue(
                f"the watchdog's seconds must be above 0, not {seconds}: callbacks.watchdog=null disables it"
            )
        self.folder, self.seconds, self.grace = Path(folder), seconds, grace
        self._file: IO[str] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the timer, which covers the first step as well."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.folder / f"rank{trainer.global_rank}.txt", "w")
        self._restart_timer()

    def _restart_timer(self, *_: Any, **__: Any) -> None:
        """Allow another `seconds` from now."""
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
