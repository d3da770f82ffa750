"""Bottlenecks between encoder and decoder: the latent's distribution and its regularisation."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ldm.typing import Channels, NonNegativeFloat


@dataclass
class DiagonalGaussian:
    """q(z|x) = N(mean, diag(std²)), raw latents (Kingma & Welling 2014); std 0 if deterministic."""

    mean: Float[Tensor, "b z h w"]
    std: Float[Tensor, "b z h w"]

    def sample(self, noise: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """z = mean + std · noise, noise ~ N(0, I)."""
        return self.mean + self.std * noise

    def kl(self) -> Float[Tensor, " b"]:
        """KL(q ‖ N(0, I)) = ½ Σ (mean² + std² − 1 − log std²) in nats, summed over each latent."""
        terms = self.mean.square() + self.std.square() - 1 - 2 * self.std.log()
        return 0.5 * terms.sum((1, 2, 3))


class Bottleneck(nn.Module, ABC):
    """The distribution of raw latents, the decoder's input and the latents' term in the loss.

    Attributes:
        in_channels: channels of the encoder's output.
        latent_channels: channels of the latent and of the decoder's input.
    """

    in_channels: int
    latent_channels: int

    @abstractmethod
    def posterior(self, h: Float[Tensor, "b m h w"]) -> DiagonalGaussian:
        """Return q(z|x) from the encoder's output, in fp32; diffusion models its samples."""

    @abstractmethod
    def expand(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """Return the decoder's input."""

    @abstractmethod
    def terms(self, posterior: DiagonalGaussian, dimensions: int) -> dict[str, Float[Tensor, ""]]:
        """Return `penalty`, the term in the loss, and further values to log.

        The penalty is per image dimension, as the rest of the loss; `dimensions` is C · H · W of an image.
        """

    def after_step(self, accepted: Bool[Tensor, ""]) -> None:
        """Update state after each optimizer step; a step that was not accepted must change nothing."""

    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        """Return metrics of all `terms` since the last call, over all ranks; every rank must call it.

        Training and validation are counted separately: the metrics are of the module's current mode.
        """
        return {}

    def codebook_counts(self) -> Int64[Tensor, " n"] | None:
        """Return the counts behind the training `metrics`, over all ranks, for a checkpoint, or None."""
        return None

    def restore(self, codebook_counts: Int64[Tensor, " n"]) -> None:
        """Continue counting from a checkpoint's `codebook_counts`."""


class KLBottleneck(Bottleneck):
    """1×1 convolutions to the posterior's moments and from the latent (Rombach et al. 2022, appendix G).

    Args:
        weight: weight of the KL, with KL and error each summed over all dimensions, as published.
    """

    def __init__(self, latent_channels: Channels, weight: NonNegativeFloat = 1e-6) -> None:
        super().__init__()
        self.latent_channels, self.weight = latent_channels, weight
        self.in_channels = 2 * latent_channels
        self.to_moments = nn.Conv2d(self.in_channels, self.in_channels, 1)
        self.from_latent = nn.Conv2d(latent_channels, latent_channels, 1)

    def posterior(self, h: Float[Tensor, "b two_z h w"]) -> DiagonalGaussian:
        """Return q(z|x) from the encoder's output, in fp32; log std² is clamped to [-30, 20] as published."""
        mean, log_variance = self.to_moments(h).float().chunk(2, dim=1)
        return DiagonalGaussian(mean, torch.exp(0.5 * log_variance.clamp(-30, 20)))

    def expand(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """Return the decoder's input."""
        return self.from_latent(z)

    def terms(self, posterior: DiagonalGaussian, dimensions: int) -> dict[str, Float[Tensor, ""]]:
        """KL(q(z|x) ‖ N(0, I)) in nats, per image dimension."""
        kl = posterior.kl().mean() / dimensions
        return {"kl": kl, "penalty": self.weight * kl}


class NoBottleneck(Bottleneck):
    """The latent is the encoder's output, without a penalty."""

    def __init__(self, latent_channels: Channels) -> None:
        super().__init__()
        self.in_channels = self.latent_channels = latent_channels

    def posterior(self, h: Float[Tensor, "b z h w"]) -> DiagonalGaussian:
        """Return a posterior with mean h and std 0."""
        return DiagonalGaussian(h.float(), torch.zeros_like(h, dtype=torch.float32))

    def expand(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """Return z."""
        return z

    def terms(self, posterior: DiagonalGaussian, dimensions: int) -> dict[str, Float[Tensor, ""]]:
        """Return a penalty of 0."""
        return {"penalty": posterior.mean.new_zeros(())}
