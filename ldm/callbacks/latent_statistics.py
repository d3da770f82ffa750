"""What the denoiser is fed: latents of mean 0 and standard deviation 1, or something is wrong."""

import torch
from lightning import Callback, Trainer

from ldm.stages import LatentDiffusionStage
from ldm.stages.base import Stage
from ldm.typing import Batch


class LatentStatistics(Callback):
    """Adds train/latent_mean and train/latent_std of this rank's first micro-batch to stage 2's logged rows.

    Stage 1 logs its own. A sample's latent is a pure function of its position: to encode it twice changes
    nothing.
    """

    @torch.no_grad()
    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, stage: Stage, batch: Batch, batch_idx: int
    ) -> None:
        """Measure before a step that is logged."""
        if stage.reports_next and isinstance(stage, LatentDiffusionStage):
            part, _ = next(stage.micro_batches(batch))
            with trainer.precision_plugin.forward_context():
                z_0 = stage.latents(part).float()
            stage.extra_metrics["train/latent_mean"], stage.extra_metrics["train/latent_std"] = (
                z_0.mean(),
                z_0.std(),
            )
