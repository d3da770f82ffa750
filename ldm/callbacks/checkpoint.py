"""Checkpoints: atomic, in plain types, triggered by the step."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ldm.stages.base import Stage


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside, fsync, rename: a file under its final name is whole, also after a kill."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save `checkpoint` at `path`; errors are raised, and leave the older file in place."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows has no handle to sync a folder by
        return
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`."""
    found = {
        int(m[1]): p for p in folder.glob("step*.ckpt") if (m := re.fullmatch(r"step(\d+)\.ckpt", p.name))
    }
    return found[max(found)] if found else None


class Checkpoint(Callback):
    """`folder/step00001000.ckpt` every `every_n_steps` and at the end; the newest `keep` stay."""

    def __init__(self, folder: str, every_n_steps: int = 1000, keep: int = 2) -> None:
        if every_n_steps < 1 or keep < 1:
            raise ValueError(
                f"checkpoints need every_n_steps >= 1 and keep >= 1, not {every_n_steps} and {keep}"
            )
        self.folder, self.every_n_steps, self.keep = Path(folder), every_n_steps, keep
        self.saved_step = -1

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        """Save where the step divides."""
        if trainer.global_step % self.every_n_steps == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """Save the last step."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write this step's file once, then remove the oldest beyond `keep`."""
        # Not path.exists(): either all ranks enter save_checkpoint or none.
        if trainer.global_step == self.saved_step:
            return
        trainer.save_checkpoint(self.folder / f"step{trainer.global_step:08d}.ckpt", weights_only=False)
        self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            for old in sorted(self.folder.glob("step*.ckpt"))[: -self.keep]:
                old.unlink()
