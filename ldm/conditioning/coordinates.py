"""Where in the picture a place of the latent lies."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.conditioning.base import Conditioner
from ldm.typing import Conditioning


class Coordinates(Conditioner):
    """Two channels, x and y in [-1, 1], concatenated to z_t (Liu et al. 2018, CoordConv, section 3).

    A convolution learns where it is only from the zeros that pad its borders, which a small U-Net finds hard
    in pure noise, just where 'left' and 'above' must be decided. All samples have the same; none is dropped.

    Args:
        size: side of the latent.
        key: any entry of the batch; it only tells how many samples there are.
    """

    grid: Tensor

    def __init__(self, size: int, key: str = "caption") -> None:
        super().__init__(key, dropout=0.0)
        if size < 2:
            raise ValueError(f"coordinates need a latent of at least 2 places a side, not {size}")
        axis = torch.linspace(-1, 1, size)
        grid = torch.stack([axis.expand(size, size), axis[:, None].expand(size, size)])
        self.register_buffer("grid", grid, persistent=False)

    def forward(self, values: Sequence[Any]) -> Conditioning:
        """The grid, once for each value."""
        return self.null(len(values))

    def null(self, n: int) -> Conditioning:
        """The grid, n times."""
        return Conditioning(concat=self.grid.expand(n, -1, -1, -1))
