"""Checkpoints every given number of steps: plain types, written atomically, verified by a hash."""

import hashlib
import importlib.metadata
import io
import logging
import re
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ldm.atomic import sync, write_atomically, write_file
from ldm.errors import InvalidValue, UserError, WriteError
from ldm.stages.base import Stage
from ldm.typing import NonNegativeInt, PositiveInt, Range

LOG = logging.getLogger(__name__)
MAX_FAILURES = 3
"""Number of consecutive failed saves that stops the run."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint atomically, then its sha256 into a file next to it.

    A file under its final name is always complete, even after a kill; the hash shows whether it has been
    corrupted since. A kill between the two writes leaves a checkpoint without a hash, which counts as intact.
    """

    def __init__(self) -> None:
        self._last_size = 0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save `checkpoint` at `path`; WriteError leaves the older file in place."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < 1.2 * self._last_size:
            raise WriteError(
                f"{path} cannot be written ({free:,} bytes are free, but the last checkpoint took"
                f" {self._last_size:,})",
                "free disk space",
            )
        with write_atomically(path, path.with_name(f".{path.name}.part"), sync_folder=True) as part:
            digest = _save_and_hash(checkpoint, part)
            sync(part)  # may fail on a full disk, so before the old hash is removed
            self._last_size = part.stat().st_size
            hash_path(path).unlink(missing_ok=True)  # never an old hash beside a new file
        write_file(hash_path(path), f"{digest}  {path.name}\n")

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the checkpoint and its hash."""
        Path(path).unlink(missing_ok=True)
        hash_path(Path(path)).unlink(missing_ok=True)


def hash_path(path: Path) -> Path:
    """Return the path of a checkpoint's sha256, in the format of `sha256sum --check`."""
    return path.with_name(f"{path.name}.sha256")


def is_intact(path: Path) -> bool:
    """Return whether a checkpoint still has its recorded hash; True if none is recorded."""
    try:
        expected = hash_path(path).read_text().split()[0]
    except (FileNotFoundError, IndexError):
        return True
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest() == expected


class _HashingWriter(io.BufferedWriter):
    """A file that is hashed while it is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return super().write(data)


def _save_and_hash(checkpoint: dict[str, Any], path: Path) -> str:
    """Write the file and return its sha256."""
    with _HashingWriter(path) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # hides the OSError of a full disk
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
    return file.digest.hexdigest()


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return step and path of each checkpoint in `folder`, ordered by step."""
    paths = folder.glob("step*.ckpt")
    return sorted((int(m[1]), p) for p in paths if (m := re.fullmatch(r"step(\d+)\.ckpt", p.name)))


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the intact checkpoint of the highest step in `folder`; None if there is none."""
    for _, path in reversed(list_checkpoints(folder)):
        if is_intact(path):
            return path
        LOG.warning(
            "%s is corrupt (its sha256 differs from the one recorded when it was saved): ignored", path
        )
    return None


class Checkpoint(Callback):
    """Save `folder/step00001000.ckpt` every `every_n_steps` and at the end; keep the newest `keep`.

    A failed save is logged and the next one is tried when it is due; the third failure in a row ends the run.

    Args:
        keep: at least 2, so that one is left if the newest is corrupt.
        milestone_every: steps between checkpoints that are kept permanently; 0 for none.
    """

    def __init__(
        self,
        folder: str,
        every_n_steps: PositiveInt = 1000,
        keep: Annotated[int, Range(2, 2**31 - 1)] = 2,
        milestone_every: NonNegativeInt = 0,
    ) -> None:
        if every_n_steps < 1 or keep < 2 or milestone_every < 0:
            raise InvalidValue(
                "checkpoints need every_n_steps >= 1, keep >= 2 and milestone_every >= 0, not "
                f"{every_n_steps=}, {keep=} and {milestone_every=}"
            )
        self.folder, self.every_n_steps, self.keep = Path(folder), every_n_steps, keep
        self.milestone_every = milestone_every
        self.metadata: dict[str, Any] = {}
        """Saved in the checkpoint under "ldm", in plain types: the run's resolved config."""
        self.saved_step = -1
        self.failures = 0

    def on_save_checkpoint(self, trainer: Trainer, stage: Stage, checkpoint: dict[str, Any]) -> None:
        """Add the version, the loggers' ids and `metadata`."""
        ids = {type(log).__name__: str(log.version) for log in trainer.loggers if log.version is not None}
        version = importlib.metadata.version("ldm")
        checkpoint["ldm"] = {"version": version, "loggers": ids, **self.metadata}

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        """Raise UserError if ranks resume from different steps, as a slow shared file system can cause."""
        first = trainer.strategy.broadcast(trainer.global_step)
        if not trainer.strategy.reduce_boolean_decision(trainer.global_step == first):
            raise UserError(
                f"this rank resumes from step {trainer.global_step} but rank 0 from step {first}, since the"
                f" shared file system does not yet show the same files in {self.folder} on all nodes: retry"
                " in a minute, or set resume=PATH"
            )

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        """Save every `every_n_steps`; the last step is saved in `on_train_end`, after the model file."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step < trainer.max_steps:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:
        """Save the last step; UserError if that fails."""
        problem = self.save(trainer)
        if problem:
            raise UserError(f"{problem}: fix that and start again with resume=auto")

    def save(self, trainer: Trainer) -> str:
        """Write this step's file once and remove the oldest beyond `keep`; return the problem, or ""."""
        # Not path.exists(), which may differ by rank: either all ranks enter save_checkpoint or none.
        if trainer.global_step == self.saved_step:
            return ""
        problem = self._save(trainer)
        if not problem:
            self.saved_step, self.failures = trainer.global_step, 0
            if trainer.is_global_zero:
                self._prune()
                for logger in trainer.loggers:
                    logger.after_save_checkpoint(self)  # type: ignore[arg-type]
            return ""
        self.failures += 1
        if self.failures >= MAX_FAILURES:
            raise UserError(
                f"{problem}, {MAX_FAILURES} times in a row: fix that and start again with resume=auto"
            )
        if trainer.is_global_zero:
            LOG.warning("%s: the older checkpoint is kept, and the next save is tried when due", problem)
        return problem

    def _save(self, trainer: Trainer) -> str:
        """Save, and return rank 0's problem on all ranks."""
        problem = ""
        try:
            trainer.save_checkpoint(self.folder / f"step{trainer.global_step:08d}.ckpt", weights_only=False)
        except OSError as error:
            problem = error.problem if isinstance(error, WriteError) else str(error)
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other ranks are waiting
        return trainer.strategy.broadcast(problem)

    def _prune(self) -> None:
        """Remove the oldest checkpoints beyond `keep`, except milestones."""
        removable = [
            path
            for step, path in list_checkpoints(self.folder)
            if not self.milestone_every or step % self.milestone_every
        ]
        for path in removable[: -self.keep]:
            AtomicCheckpointIO().remove_checkpoint(path)
