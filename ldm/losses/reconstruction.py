"""Pixel distances between images and their reconstructions."""

from jaxtyping import Float
from torch import Tensor, nn

from ldm.errors import InvalidValue
from ldm.typing import Image, NonNegativeFloat


class ReconstructionLoss(nn.Module):
    """l1 |x_hat - x| + l2 (x_hat - x)^2 + gradient |grad x_hat - grad x|, means over an image.

    The gradient term compares differences of neighbouring pixels (Mathieu et al. 2016, equation 6).
    """

    def __init__(
        self, l1: NonNegativeFloat = 1.0, l2: NonNegativeFloat = 0.0, gradient: NonNegativeFloat = 0.0
    ) -> None:
        super().__init__()
        if min(l1, l2, gradient) < 0 or max(l1, l2, gradient) == 0:
            raise InvalidValue(
                f"l1={l1}, l2={l2}, gradient={gradient}: use weights >= 0, at least one of them > 0"
            )
        self.l1, self.l2, self.gradient = l1, l2, gradient

    def forward(self, x_hat: Image, x: Image) -> Float[Tensor, " b"]:
        """Return the loss of each image."""
        error = x_hat - x  # b c h w
        loss = self.l1 * _mean(error.abs())  # b
        if self.l2 > 0:
            loss = loss + self.l2 * _mean(error.square())
        if self.gradient > 0:
            loss = loss + self.gradient * (_mean(error.diff(dim=2).abs()) + _mean(error.diff(dim=3).abs()))
        return loss


def _mean(error: Image) -> Float[Tensor, " b"]:
    return error.mean((1, 2, 3))
