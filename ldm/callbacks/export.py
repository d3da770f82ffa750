"""The model file that a run leaves: one .safetensors with averaged weights and the configuration."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from ldm.callbacks.ema import use_ema_weights
from ldm.interop import model_file
from ldm.stages.base import Stage


class Export(Callback):
    """Writes `path` at the end of training, and every `every_n_steps` on the way.

    Args:
        path: the file.
        config: of `stage.model`, as plain types; it goes into the header, and the model is rebuilt from it.
        kind: "autoencoder" or "latent_diffusion".
    """

    def __init__(self, path: str, config: Any, kind: str, every_n_steps: int) -> None:
        self.path, self.config, self.kind, self.every_n_steps = Path(path), config, kind, every_n_steps

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        """Save where the step divides."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step < trainer.max_steps:
            self.save(trainer, stage)

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """Save the end."""
        self.save(trainer, stage)

    def save(self, trainer: Trainer, stage: Stage) -> None:
        """Average, measure what the stage measures at its end, write."""
        if not trainer.is_global_zero:
            return
        with use_ema_weights(trainer, stage):
            with _alone(trainer.datamodule):  # type: ignore[attr-defined]
                stage.on_export(trainer.datamodule)  # type: ignore[attr-defined]
            size = str(trainer.datamodule.size)  # type: ignore[attr-defined]
            identity = stage.identity() | {"step": str(trainer.global_step), "size": size}
            model_file.save(self.path, stage.exported_tensors(), self.config, self.kind, identity)


@contextmanager
def _alone(data: Any) -> Iterator[None]:
    """The data come as to one process: what is measured does not depend on the number of ranks."""
    trainer, data.trainer = data.trainer, None
    try:
        yield
    finally:
        data.trainer = trainer
