"""The coordinates of each latent position as a condition."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.conditioning.base import Conditioner, Size
from ldm.errors import InvalidValue
from ldm.typing import Conditioning, Pixels


class Coordinates(Conditioner):
    """Two channels, x and y in [-1, 1], concatenated to z_t (Liu et al. 2018, CoordConv, section 3).

    A convolution learns its position only from the zeros that pad the borders, which is hard for a small
    U-Net at high noise, where 'left' and 'above' are decided. The same for all samples; never dropped.

    At every size the first position is -1 and the last 1. So the coordinates are relative to the whole image:
    a larger or wider image than in training gets the whole composition, and no untrained coordinates.

    Args:
        size: default height and width of the latent, used where the size is unknown.
    """

    def __init__(self, size: Pixels) -> None:
        super().__init__(batch_key="", dropout=0.0)
        if size < 2:
            raise InvalidValue(f"coordinates need latents of height and width 2 or more, got size={size}")
        self.size = size

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """None: only the batch size matters."""
        return ()

    def read(self, batch: Mapping[str, Any], size: Size | None) -> Float[Tensor, "b 2 h w"]:
        """Return the grid, once per sample."""
        return self.grid(size).expand(len(next(iter(batch.values()))), -1, -1, -1)

    def forward(self, values: Float[Tensor, "b 2 h w"]) -> Conditioning:
        """Return the grid as `concat`."""
        return Conditioning(concat=values)

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return the grid, n times."""
        return Conditioning(concat=self.grid(size).expand(n, -1, -1, -1))

    def grid(self, size: Size | None) -> Float[Tensor, "2 h w"]:
        """Return x and y of each latent position."""
        height, width = (self.size, self.size) if size is None else size
        x, y = (torch.linspace(-1, 1, length, device=self.device) for length in (width, height))
        return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
