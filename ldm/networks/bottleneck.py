"""What stands between encoder and decoder: the latent's distribution, and what it costs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn


@dataclass
class DiagonalGaussian:
    """q(z|x) = N(mean, diag(std²)), raw latents (Kingma & Welling 2014); std 0 where nothing is drawn."""

    mean: Float[Tensor, "b z h w"]
    std: Float[Tensor, "b z h w"]

    def sample(self, noise: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """z = mean + std · noise, noise ~ N(0, I)."""
        return self.mean + self.std * noise

    def kl(self) -> Float[Tensor, " b"]:
        """KL(q ‖ N(0, I)) = ½ Σ (mean² + std² − 1 − log std²) in nats, summed over a latent."""
        terms = self.mean.square() + self.std.square() - 1 - 2 * self.std.log()
        return 0.5 * terms.sum((1, 2, 3))


class Bottleneck(nn.Module, ABC):
    """A raw latent's distribution, the decoder's input, and the latent's own term of the loss.

    Attributes:
        in_channels: of the encoder's output.
        latent_channels: of the latent and of the decoder's input.
    """

    in_channels: int
    latent_channels: int

    @abstractmethod
    def posterior(self, h: Float[Tensor, "b m h w"]) -> DiagonalGaussian:
        """q(z|x) of the encoder's output, in fp32: what diffusion models."""

    @abstractmethod
    def expand(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """The decoder's input."""

    @abstractmethod
    def terms(self, posterior: DiagonalGaussian, dimensions: int) -> dict[str, Float[Tensor, ""]]:
        """`penalty`, the loss's term, which like all of it is a mean over a image's `dimensions` (C H W).

        What else there is to log stands beside it.
        """

    def after_step(self, taken: Bool[Tensor, ""]) -> None:
        """What is to be done behind each optimizer step; nothing may move behind one that was not taken."""

    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        """What there is to log of all `terms` since the last call, over all ranks, which call it together.

        Training and validation are counted apart: this tells of the mode that the module is in.
        """
        return {}

    def codebook_counts(self) -> Int64[Tensor, " n"] | None:
        """What `metrics` will tell of training from, over all ranks, for a checkpoint; None of nothing."""
        return None

    def restore(self, codebook_counts: Int64[Tensor, " n"]) -> None:
        """Count on from a checkpoint's tally."""


class KLBottleneck(Bottleneck):
    """1×1 convolutions to the posterior's moments and from the latent (Rombach et al. 2022, appendix G).

    Args:
        weight: of the KL, both it and the error summed over all they have, as published.
    """

    def __init__(self, latent_channels: int, weight: float = 1e-6) -> None:
        super().__init__()
        self.latent_channels, self.weight = latent_channels, weight
        self.in_channels = 2 * latent_channels
        self.to_moments = nn.Conv2d(self.in_channels, self.in_channels, 1)
        self.from_latent = nn.Conv2d(latent_channels, latent_channels, 1)

    def posterior(self, h: Float[Tensor, "b two_z h w"]) -> DiagonalGaussian:
        """q(z|x) of the encoder's output, in fp32; log std² is clamped to [-30, 20] as published."""
        mean, log_variance = self.to_moments(h).float().chunk(2, dim=1)
        return DiagonalGaussian(mean, torch.exp(0.5 * log_variance.clamp(-30, 20)))

    def expand(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """The decoder's input."""
        return self.from_latent(z)

    def terms(self, posterior: DiagonalGaussian, dimensions: int) -> dict[str, Float[Tensor, ""]]:
        """KL(q(z|x) ‖ N(0, I)) in nats, per image dimension."""
        kl = posterior.kl().mean() / dimensions
        return {"kl": kl, "penalty": self.weight * kl}


class NoBottleneck(Bottleneck):
    """The latent is the encoder's output, and free."""

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.in_channels = self.latent_channels = latent_channels

    def posterior(self, h: Float[Tensor, "b z h w"]) -> DiagonalGaussian:
        """All of it at h."""
        return DiagonalGaussian(h.float(), torch.zeros_like(h, dtype=torch.float32))

    def expand(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """z itself."""
        return z

    def terms(self, posterior: DiagonalGaussian, dimensions: int) -> dict[str, Float[Tensor, ""]]:
        """Nothing to pay."""
        return {"penalty": posterior.mean.new_zeros(())}
