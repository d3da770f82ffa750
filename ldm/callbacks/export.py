"""The model file of a run: one .safetensors with averaged weights and the model's config.

`ldm.cli.training.setup` adds this callback to every run; it has no key in `callbacks`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from ldm.callbacks.ema import use_ema_weights
from ldm.interop import model_file
from ldm.stages.base import Stage


class Export(Callback):
    """Write the model file every `every_n_steps` and at the end of training.

    Args:
        path: the model file.
        config: of `stage.model`, in plain types; saved in the header, where the model is rebuilt from it.
        kind: "autoencoder" or "latent_diffusion".
    """

    def __init__(self, path: str, config: Any, kind: str, every_n_steps: int) -> None:
        self.path, self.config, self.kind, self.every_n_steps = Path(path), config, kind, every_n_steps

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        """Write every `every_n_steps`."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step < trainer.max_steps:
            self.save(trainer, stage)

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:
        """Write the final model."""
        self.save(trainer, stage)

    def save(self, trainer: Trainer, stage: Stage) -> None:
        """Put the averaged weights in place, let the stage measure what belongs in the file, write it."""
        if not trainer.is_global_zero:
            return
        with use_ema_weights(trainer, stage):
            with _as_single_process(trainer.datamodule):  # type: ignore[attr-defined]
                stage.on_export(trainer.datamodule)  # type: ignore[attr-defined]
            size = str(trainer.datamodule.size)  # type: ignore[attr-defined]
            extra = stage.header_entries() | {"step": str(trainer.global_step), "size": size}
            model_file.save(self.path, stage.exported_tensors(), self.config, self.kind, extra)


@contextmanager
def _as_single_process(data: Any) -> Iterator[None]:
    """Let the data module serve global batches, so that measurements do not depend on the number of ranks."""
    trainer, data.trainer = data.trainer, None
    try:
        yield
    finally:
        data.trainer = trainer
