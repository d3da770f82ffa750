"""Preview images during training, in the run's folder, W&B and TensorBoard."""

from pathlib import Path
from typing import Annotated

from lightning import Trainer

from ldm.callbacks.ema import use_ema_weights
from ldm.callbacks.loggers.tensorboard import TensorBoardLogger
from ldm.callbacks.loggers.wandb import WandbLogger
from ldm.callbacks.periodic_writer import PeriodicWriter
from ldm.grid import labelled_grid, write_png
from ldm.stages.base import Stage
from ldm.typing import PositiveInt, Range


class ImageLogger(PeriodicWriter):
    """Save `stage.preview_images` as `folder/step00001000.png` every `every_n_steps` and at the end."""

    required = False

    def __init__(
        self, folder: str, every_n_steps: PositiveInt, scale: Annotated[int, Range(1, 64)] = 1
    ) -> None:
        self.folder, self.every_n_steps, self.scale = Path(folder), every_n_steps, scale

    def save(self, trainer: Trainer, stage: Stage) -> None:
        """Pass averaged weights' images to the loggers that show images, and write them as one PNG."""
        stage.eval()
        with use_ema_weights(trainer, stage):
            rows = stage.preview_images(trainer.datamodule)  # type: ignore[attr-defined]
        stage.train()
        if not rows:  # stage 2 without prompts
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger | TensorBoardLogger):
                logger.log_images(rows, trainer.global_step)
        write_png(self.folder / f"step{trainer.global_step:08d}.png", labelled_grid(rows, self.scale))
