"""Mean and standard deviation of the latents that train the denoiser, which should be 0 and 1."""

import torch
from lightning import Callback, Trainer

from ldm.stages import LatentDiffusionStage
from ldm.stages.base import Stage
from ldm.typing import Batch


class LatentStatistics(Callback):
    """Add train/latent_mean and train/latent_std of rank 0's first micro-batch to stage 2's log rows.

    Stage 1 logs its own. Encoding a batch twice changes nothing: a latent's noise depends on its position.
    """

    @torch.no_grad()
    def on_train_batch_start(self, trainer: Trainer, stage: Stage, batch: Batch, batch_idx: int) -> None:
        """Measure before a step that is logged."""
        if stage.logs_this_step and isinstance(stage, LatentDiffusionStage):
            part, _ = next(stage.micro_batches(batch))
            with trainer.precision_plugin.forward_context():
                z_0 = stage.latents(part).float()
            stage.extra_metrics["train/latent_mean"] = z_0.mean()
            stage.extra_metrics["train/latent_std"] = z_0.std()
