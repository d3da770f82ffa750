"""Checkpoints: whole or not at all, told apart from damaged ones, in plain types, triggered by the step."""

import hashlib
import importlib.metadata
import io
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ldm.errors import InvalidValue, UserError
from ldm.stages.base import Stage

LOG = logging.getLogger(__name__)
FAILURES = 3
"""Saves in a row that may fail before the run is stopped."""


class CheckpointWriteError(OSError):
    """A checkpoint that could not be written; what was there before still is."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside, fsync, rename, then the file's sha256 into a side-car.

    A file under its final name is whole at any moment, also after a kill; the side-car tells when the disk
    has damaged it since. Without a side-car, where a kill came between the two, it is taken as it is.
    """

    def __init__(self) -> None:
        self._bytes = 0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save `checkpoint` at `path`; NotSaved leaves the older file in place."""
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path.parent).free
            if free < 1.2 * self._bytes:
                raise OSError(f"{free:,} bytes are free and the last one had {self._bytes:,}")
            digest = _write(checkpoint, part)
            self._bytes = part.stat().st_size
            sidecar(path).unlink(missing_ok=True)
            os.replace(part, path)
            _sync_folder(path.parent)
            sidecar(path).write_text(f"{digest}  {path.name}\n")
        except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of a full disk
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointWriteError(f"the checkpoint {path} could not be written ({reason})") from error
        finally:
            part.unlink(missing_ok=True)

    def remove_checkpoint(self, path: Any) -> None:
        """The file and its side-car."""
        Path(path).unlink(missing_ok=True)
        sidecar(Path(path)).unlink(missing_ok=True)


def sidecar(path: Path) -> Path:
    """Where a checkpoint's sha256 stands, as `sha256sum --check` reads it."""
    return path.with_name(f"{path.name}.sha256")


def is_undamaged(path: Path) -> bool:
    """Whether a checkpoint is what was written."""
    try:
        stated = sidecar(path).read_text().split()[0]
    except (FileNotFoundError, IndexError):
        return True
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest() == stated


class _Hashing(io.BufferedWriter):
    """A file that is written and hashed at once."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return super().write(data)


def _write(checkpoint: dict[str, Any], path: Path) -> str:
    """The sha256 of what now lies on the disk."""
    with _Hashing(path) as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    return file.digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows has no handle to sync a folder by
        return
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of each checkpoint in `folder`, by step."""
    paths = folder.glob("step*.ckpt")
    return sorted((int(m[1]), p) for p in paths if (m := re.fullmatch(r"step(\d+)\.ckpt", p.name)))


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder` that is as it was written; None for a fresh start."""
    for _, path in reversed(checkpoints(folder)):
        if is_undamaged(path):
            return path
        LOG.warning("%s is damaged, its sha256 is not the one it was written with: passed over", path)
    return None


class Checkpoint(Callback):
    """`folder/step00001000.ckpt` every `every_n_steps` and at the end; the newest `keep` stay.

    A save that fails is said, and tried again when the next is due; the third in a row ends the run.

    Args:
        keep: at least 2, or nothing is left where the newest is damaged.
        milestone_every: steps between those that stay for good; 0 is none.
    """

    def __init__(
        self, folder: str, every_n_steps: int = 1000, keep: int = 2, milestone_every: int = 0
    ) -> None:
        if every_n_steps < 1 or keep < 2 or milestone_every < 0:
            raise InvalidValue(
                f"checkpoints need every_n_steps >= 1, keep >= 2 and milestone_every >= 0, not "
                f"{every_n_steps}, {keep} and {milestone_every}"
            )
        self.folder, self.every_n_steps, self.keep = Path(folder), every_n_steps, keep
        self.milestone_every = milestone_every
        self.about: dict[str, str] = {}
        """What a file says of its run, as its resolved config."""
        self.saved_step = -1
        self.failures = 0

    def on_save_checkpoint(self, trainer: Trainer, stage: Stage, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Which run this is: its config, the loggers' ids, the version."""
        ids = {type(log).__name__: str(log.version) for log in trainer.loggers if log.version is not None}
        version = importlib.metadata.version("ldm")
        checkpoint["ldm"] = {"version": version, "loggers": ids, **self.about}

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """UserError where a slow file system showed the ranks different checkpoints to go on from."""
        first = trainer.strategy.broadcast(trainer.global_step)
        if not trainer.strategy.reduce_boolean_decision(trainer.global_step == first):
            raise UserError(
                f"the ranks go on from different steps, this one from {trainer.global_step}, rank 0 from"
                f" {first}: the file system does not show {self.folder} alike on all nodes yet, start again"
                " in a minute or give resume=PATH"
            )

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        """Save where the step divides; the last step is saved when all its files stand."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step < trainer.max_steps:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """Save the last step; UserError where that fails."""
        problem = self.save(trainer)
        if problem:
            raise UserError(f"{problem}: make room and go on with resume=auto")

    def save(self, trainer: Trainer) -> str:
        """Write this step's file once, then remove the oldest beyond `keep`; what went wrong, or nothing."""
        # Not path.exists(): either all ranks enter save_checkpoint or none.
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
        if self.failures >= FAILURES:
            raise UserError(f"{problem}, {FAILURES} times in a row: make room and go on with resume=auto")
        if trainer.is_global_zero:
            LOG.warning("%s; the older one stays, and the next is tried when it is due", problem)
        return problem

    def _save(self, trainer: Trainer) -> str:
        """What went wrong on rank 0, known to all ranks."""
        problem = ""
        try:
            trainer.save_checkpoint(self.folder / f"step{trainer.global_step:08d}.ckpt", weights_only=False)
        except CheckpointWriteError as error:
            problem = str(error)
            trainer.strategy.barrier("Trainer.save_checkpoint")  # at which the other ranks wait
        return trainer.strategy.broadcast(problem)

    def _prune(self) -> None:
        passing = [
            path
            for step, path in checkpoints(self.folder)
            if not self.milestone_every or step % self.milestone_every
        ]
        for old in passing[: -self.keep]:
            AtomicCheckpointIO().remove_checkpoint(old)
