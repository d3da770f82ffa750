"""The two training stages as LightningModules: they connect built objects and contain no mathematics.

One `training_step` is one global batch and one optimizer step, so the step, max_steps, warm-up, EMA,
checkpoints, the position in the stream of samples and the discriminator's start are one integer. In both
stages `self.model` is what is trained, averaged, validated and exported.
"""

from ldm.stages.autoencoder import AutoencoderStage
from ldm.stages.latent_diffusion import LatentDiffusionStage

__all__ = ["AutoencoderStage", "LatentDiffusionStage"]
