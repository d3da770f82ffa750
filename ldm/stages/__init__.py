"""The two training stages as LightningModules: they wire finished objects together and hold no mathematics.

One `training_step` is one global batch and one optimizer step, so the step, max_steps, warm-up, EMA,
checkpoints, the stream's position and the discriminator's start are one integer. Both stages call what they
train, average, validate and export `self.model`.
"""

from ldm.stages.autoencoder import AutoencoderStage
from ldm.stages.latent_diffusion import LatentDiffusionStage

__all__ = ["AutoencoderStage", "LatentDiffusionStage"]
