"""EQ-VAE: latents equivariant to rotation and scaling of their images."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.errors import InvalidValue
from ldm.typing import Latent, Proportion


class Equivariance:
    """L(D(τ z), τ x) instead of L(D(z), x) in some steps (Kouzelis et al. 2025, EQ-VAE, equation 6).

    τ rotates by a multiple of 90° and downscales. Equivariant latents are smoother, and a diffusion model
    learns them faster (https://arxiv.org/abs/2502.09509).

    Args:
        probability: probability of a step with τ.
        smallest: smallest scale factor; the adversary and the perceptual loss must support that image size.
    """

    def __init__(self, probability: Proportion = 0.5, smallest: Proportion = 0.25) -> None:
        if not 0 <= probability <= 1 or not 0 < smallest <= 1:
            raise InvalidValue(
                f"probability={probability} must be in [0, 1] and smallest={smallest} in (0, 1]"
            )
        self.probability, self.smallest = probability, smallest

    def __call__(
        self, z: Latent, x: Float[Tensor, "b c H W"], u: Float[Tensor, "3"]
    ) -> tuple[Tensor, Tensor]:
        """Return (τ z, τ x), with τ from three uniform numbers u and the same for the whole batch."""
        apply, shrink, turn = u.tolist()
        if apply >= self.probability:
            return z, x
        factor = x.shape[-1] // z.shape[-1]
        height, width = (self.scale_length(length, shrink) for length in z.shape[-2:])
        turns = int(4 * turn)
        return transform(z, height, width, turns), transform(x, factor * height, factor * width, turns)

    def scale_length(self, length: int, u: float = 0.0) -> int:
        """Return a latent's height or width after downscaling, for a uniform number u; 0: the smallest."""
        return max(1, round(length * (self.smallest + (1 - self.smallest) * u)))


def transform(
    x: Float[Tensor, "b c h w"], height: int, width: int, quarter_turns: int
) -> Float[Tensor, "b c h2 w2"]:
    """Resize a map, then rotate it by multiples of 90°."""
    if (height, width) != tuple(x.shape[-2:]):
        x = interpolate(x, (height, width), mode="bilinear", antialias=True)
    return torch.rot90(x, quarter_turns, (2, 3))
