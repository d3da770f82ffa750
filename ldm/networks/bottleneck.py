"""What stands between encoder and decoder: the latent's distribution."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass
class DiagonalGaussian:
    """q(z|x) = N(mean, diag(std²)), raw latents (Kingma & Welling 2014)."""

    mean: Float[Tensor, "b z h w"]
    std: Float[Tensor, "b z h w"]

    def sample(self, noise: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """z = mean + std · noise, noise ~ N(0, I)."""
        return self.mean + self.std * noise

    def kl(self) -> Float[Tensor, " b"]:
        """KL(q ‖ N(0, I)) = ½ Σ (mean² + std² − 1 − log std²) in nats, summed over a latent."""
        terms = self.mean.square() + self.std.square() - 1 - 2 * self.std.log()
        return 0.5 * terms.sum((1, 2, 3))


class KLBottleneck(nn.Module):
    """1×1 convolutions to the posterior's moments and from the latent (Rombach et al. 2022, appendix G).

    Attributes:
        in_channels: of the encoder's output, twice the latent's.
        latent_channels: of the latent and of the decoder's input.
    """

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.latent_channels = latent_channels
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
