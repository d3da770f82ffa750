"""Preview images during training, in the run's folder, W&B and TensorBoard."""

from pathlib import Path
from typing import Annotated, Any

from lightning import Callback, Trainer

from ldm.callbacks.ema import use_ema_weights
from ldm.callbacks.loggers.tensorboard import TensorBoardLogger
from ldm.callbacks.loggers.wandb import WandbLogger
from ldm.grid import labelled_grid
from ldm.stages.base import Stage
from ldm.typing import PositiveInt, Range


class ImageLogger(Callback):
    """Save `stage.preview_images` as `folder/step00001000.png` every `every_n_steps` and at the end."""

    def __init__(
        self, folder: str, every_n_steps: PositiveInt, scale: Annotated[int, Range(1, 64)] = 1
    ) -> None:
        self.folder, self.every_n_steps, self.scale = Path(folder), every_n_steps, scale

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        """Save every `every_n_steps`."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step < trainer.max_steps:
            self.save(trainer, stage)

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:
        """Save the final previews."""
        self.save(trainer, stage)

    def save(self, trainer: Trainer, stage: Stage) -> None:
        """On rank 0, write one PNG of averaged weights' images and pass them to loggers that show images."""
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
