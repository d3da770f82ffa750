"""EQ-VAE: latents that turn and shrink as their images do."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.errors import InvalidValue
from ldm.typing import Latent


class Equivariance:
    """L(D(τ z), τ x) in the place of L(D(z), x) at some steps (Kouzelis et al. 2025, EQ-VAE, equation 6).

    τ turns by a multiple of 90° and shrinks. A latent whose every part means its own part of the image is
    smoother, and a diffusion model learns it faster (https://arxiv.org/abs/2502.09509).

    Args:
        probability: of a step with τ.
        smallest: least side after shrinking, as a share; the adversary and the perceptual loss must take it.
    """

    def __init__(self, probability: float = 0.5, smallest: float = 0.25) -> None:
        if not 0 <= probability <= 1 or not 0 < smallest <= 1:
            raise InvalidValue(
                f"probability is in [0, 1] and smallest in (0, 1], not {probability} and {smallest}"
            )
        self.probability, self.smallest = probability, smallest

    def __call__(
        self, z: Latent, x: Float[Tensor, "b c H W"], u: Float[Tensor, "3"]
    ) -> tuple[Tensor, Tensor]:
        """(τ z, τ x); τ follows from three uniform numbers and is the same for the batch."""
        apply, shrink, turn = u.tolist()
        if apply >= self.probability:
            return z, x
        factor = x.shape[-1] // z.shape[-1]
        height, width = (self.shrunk(side, shrink) for side in z.shape[-2:])
        steps_of_this_worker = int(4 * turn)
        return transform(z, height, width, steps_of_this_worker), transform(
            x, factor * height, factor * width, steps_of_this_worker
        )

    def shrunk(self, side: int, u: float = 0.0) -> int:
        """A latent's side after shrinking, for a uniform number u: at 0 the least."""
        return max(1, round(side * (self.smallest + (1 - self.smallest) * u)))


def transform(
    x: Float[Tensor, "b c h w"], height: int, width: int, steps_of_this_worker: int
) -> Float[Tensor, "b c h2 w2"]:
    """The map in another size, then turned by quarters."""
    if (height, width) != tuple(x.shape[-2:]):
        x = interpolate(x, (height, width), mode="bilinear", antialias=True)
    return torch.rot90(x, steps_of_this_worker, (2, 3))
