"""The model file of a run: one .safetensors with averaged weights and the model's config.

`ldm.cli.training.setup` adds this callback to every run; it has no key in `callbacks`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Trainer
from torch import Tensor

from ldm.callbacks.ema import use_ema_weights
from ldm.callbacks.periodic_writer import PeriodicWriter
from ldm.errors import Diverged
from ldm.interop import model_file
from ldm.stages.base import Stage


class Export(PeriodicWriter):
    """Write the model file every `every_n_steps` and at the end of training.

    Args:
        path: the model file.
        config: of `stage.model`, in plain types; saved in the header, where the model is rebuilt from it.
        kind: "autoencoder" or "latent_diffusion".
    """

    def __init__(self, path: str, config: Any, kind: str, every_n_steps: int) -> None:
        self.path, self.config, self.kind, self.every_n_steps = Path(path), config, kind, every_n_steps

    def save(self, trainer: Trainer, stage: Stage) -> None:
        """Put the averaged weights in place, let the stage measure what belongs in the file, write it."""
        with use_ema_weights(trainer, stage):
            with _as_single_process(trainer.datamodule):  # type: ignore[attr-defined]
                stage.on_export(trainer.datamodule)  # type: ignore[attr-defined]
            size = str(trainer.datamodule.size)  # type: ignore[attr-defined]
            extra = stage.header_entries() | {"step": str(trainer.global_step), "size": size}
            tensors = stage.exported_tensors()
            _check_finite(tensors, trainer.global_step)
            model_file.save(self.path, tensors, self.config, self.kind, extra)


def _check_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    """Raise Diverged for weights that are not finite, before a checkpoint of them replaces a good one."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise Diverged(
                f"the weights are not finite at step {step} (the first is {name}): start again, or resume "
                "from an earlier checkpoint (resume=PATH run=FOLDER), with a lower optimizer.lr"
            )


@contextmanager
def _as_single_process(data: Any) -> Iterator[None]:
    """Let the data module serve global batches, so that measurements do not depend on the number of ranks."""
    trainer, data.trainer = data.trainer, None
    try:
        yield
    finally:
        data.trainer = trainer
