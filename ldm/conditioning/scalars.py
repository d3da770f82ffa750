"""Numbers as a condition: sizes, crops, scores."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ldm.conditioning.base import Conditioner, Size
from ldm.errors import InvalidValue
from ldm.networks.denoiser import sinusoidal_embedding
from ldm.typing import Conditioning


class Scalars(Conditioner):
    """c = the sinusoids of each number, side by side (Podell et al. 2023, section 2.2). The null is zeros.

    Stable Diffusion XL: 6 of `sizes` (height and width as stored, the crop's top and left, height and width
    drawn); its refiner: the first 4 of them, and 1 of `aesthetic`.

    Args:
        key: the batch's entry.
        n: how many of its numbers are used, from the first on.
        width: channels of each.
        scale: what a number is multiplied by before its sinusoids, which tell 1 from 2 but not 0.1 from 0.2.
    """

    def __init__(self, key: str, n: int, width: int, dropout: float, scale: float = 1.0) -> None:
        super().__init__(key, dropout)
        if n < 1 or width < 2 or width % 2:
            raise InvalidValue(f"numbers need n >= 1 and an even width >= 2, not {n} and {width}")
        self.n, self.width, self.scale = n, width, scale

    def forward(self, values: Float[Tensor, "b m"]) -> Conditioning:
        """The condition of each row of numbers."""
        used = values.to(self.device)[:, : self.n]
        if used.shape[1] != self.n:
            raise InvalidValue(f"{self.key} has {used.shape[1]} numbers, the condition wants {self.n}")
        waves = sinusoidal_embedding(self.scale * used.flatten(), self.width)
        return Conditioning(vector=rearrange(waves, "(b n) d -> b (n d)", n=self.n))

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Zeros."""
        return Conditioning(vector=torch.zeros(n, self.n * self.width, device=self.device))
