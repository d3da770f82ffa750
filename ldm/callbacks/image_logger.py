"""Grids of images under the run's folder, at W&B and in TensorBoard, while it trains."""

from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from ldm.callbacks.ema import use_ema_weights
from ldm.callbacks.loggers.tensorboard import TensorBoardLogger
from ldm.callbacks.loggers.wandb import WandbLogger
from ldm.grid import labelled_grid
from ldm.stages.base import Stage


class ImageLogger(Callback):
    """`folder/step00001000.png` every `every_n_steps` and at the end: `stage.preview_images` of the average."""

    def __init__(self, folder: str, every_n_steps: int, scale: int = 1) -> None:
        self.folder, self.every_n_steps, self.scale = Path(folder), every_n_steps, scale

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        """Draw where the step divides."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step < trainer.max_steps:
            self.draw(trainer, stage)

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """Draw the end."""
        self.draw(trainer, stage)

    def draw(self, trainer: Trainer, stage: Stage) -> None:
        """One PNG, and a gallery for each logger that shows images, by rank 0."""
        if not trainer.is_global_zero:
            return
        stage.eval()
        with use_ema_weights(trainer, stage):
            rows = stage.preview_images(trainer.datamodule)  # type: ignore[attr-defined]
        stage.train()
        if not rows:  # stage 2 without prompts
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        labelled_grid(rows, self.scale).save(self.folder / f"step{trainer.global_step:08d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger | TensorBoardLogger):
                logger.log_images(rows, trainer.global_step)
