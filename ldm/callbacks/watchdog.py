"""A run that hangs says where, and ends."""

import faulthandler
import signal
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lightning import Callback, LightningModule, Trainer

from ldm.errors import InvalidValue

GRACE = 30.0
"""Seconds from a rank's stack to its end, with which srun kills the others: they write theirs before."""


class Watchdog(Callback):
    """Where nothing moves for `seconds`, a rank writes its stack to `folder/rank0.txt` and dies of SIGALRM.

    Both are left to C code and the kernel, for a hung process may never run Python again. Collectives give up
    by themselves, but later (half an hour, `ldm.cli.training.setup`) and without saying where the ranks stood.
    """

    def __init__(self, folder: str, seconds: float = 900.0, grace: float = GRACE) -> None:
        if seconds <= 0:
            raise InvalidValue(f"the watchdog's seconds must be above 0, not {seconds}: null switches it off")
        self.folder, self.seconds, self.grace = Path(folder), seconds, grace
        self._file: IO[str] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first step is watched, too."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.folder / f"rank{trainer.global_rank}.txt", "w")
        self._moved()

    def _moved(self, *_: Any, **__: Any) -> None:
        """Something happened: from here on `seconds` more."""
        if self._file is not None:
            faulthandler.dump_traceback_later(self.seconds, file=self._file)
            signal.setitimer(signal.ITIMER_REAL, self.seconds + self.grace)

    on_train_batch_start = on_train_batch_end = _moved
    on_validation_batch_start = on_validation_end = on_save_checkpoint = _moved

    def _done(self, *_: Any, **__: Any) -> None:
        """Nobody is watched any more; an empty file goes."""
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._file.close()
            path, self._file = Path(self._file.name), None
            if path.stat().st_size == 0:
                path.unlink()
                with suppress(
                    OSError
                ):  # another rank's file is still there, or it was first to remove the folder
                    self.folder.rmdir()

    on_train_end = on_exception = teardown = _done
