"""Scalars as a condition: sizes, crops, scores."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ldm.conditioning.base import Conditioner, Size
from ldm.errors import InvalidValue
from ldm.networks.denoiser import sinusoidal_embedding
from ldm.typing import Channels, Conditioning, PositiveFloat, Proportion


class Scalars(Conditioner):
    """c = the concatenated sinusoidal embeddings of n scalars (Podell et al. 2023, section 2.2); null: zeros.

    Stable Diffusion XL: the 6 `sizes` (height and width as stored, the crop's top and left, target
    height and width); its refiner: the first 4 of them, and 1 `aesthetic`.

    Args:
        batch_key: of a row of scalars per sample.
        n: number of scalars used, from the first on.
        width: channels of each embedding.
        scale: factor on the scalars before the embedding, which separates 1 from 2 but not 0.1 from 0.2.
    """

    def __init__(
        self, batch_key: str, n: Channels, width: Channels, dropout: Proportion, scale: PositiveFloat = 1.0
    ) -> None:
        super().__init__(batch_key, dropout)
        if n < 1 or width < 2 or width % 2:
            raise InvalidValue(f"scalars need n >= 1 and an even width >= 2, not {n} and {width}")
        self.n, self.width, self.scale = n, width, scale

    def forward(self, values: Float[Tensor, "b m"]) -> Conditioning:
        """Embed rows of scalars."""
        scalars = values.to(self.device)[:, : self.n]
        if scalars.shape[1] != self.n:
            raise InvalidValue(
                f"batch[{self.batch_key!r}] has {scalars.shape[1]} scalars per sample, but the conditioner "
                f"has n={self.n}"
            )
        embedded = sinusoidal_embedding(self.scale * scalars.flatten(), self.width)
        return Conditioning(vector=rearrange(embedded, "(b n) d -> b (n d)", n=self.n))

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return zeros."""
        return Conditioning(vector=torch.zeros(n, self.n * self.width, device=self.device))
