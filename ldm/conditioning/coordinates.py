"""Where in the image a place of the latent lies."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.conditioning.base import Conditioner, Size
from ldm.errors import InvalidValue
from ldm.typing import Conditioning


class Coordinates(Conditioner):
    """Two channels, x and y in [-1, 1], concatenated to z_t (Liu et al. 2018, CoordConv, section 3).

    A convolution learns where it is only from the zeros that pad its borders, which a small U-Net finds hard
    in pure noise, just where 'left' and 'above' must be decided. All samples have the same; none is dropped.

    At every size -1 is the first place and 1 the last: they are shares of the whole image, so that a larger
    or wider one than trained has the whole composition, and never a number that was not learned.

    Args:
        size: side of the latent, where nobody tells another.
    """

    def __init__(self, size: int) -> None:
        super().__init__(key="", dropout=0.0)
        if size < 2:
            raise InvalidValue(f"coordinates need a latent of at least 2 places a side, not {size}")
        self.size = size

    @property
    def keys(self) -> tuple[str, ...]:
        """None: it needs no more than to know how many samples there are."""
        return ()

    def read(self, batch: Mapping[str, Any], size: Size | None) -> Float[Tensor, "b 2 h w"]:
        """The grid, once for each sample."""
        return self.grid(size).expand(len(next(iter(batch.values()))), -1, -1, -1)

    def forward(self, values: Float[Tensor, "b 2 h w"]) -> Conditioning:
        """The grid itself."""
        return Conditioning(concat=values)

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """The grid, n times."""
        return Conditioning(concat=self.grid(size).expand(n, -1, -1, -1))

    def grid(self, size: Size | None) -> Float[Tensor, "2 h w"]:
        """x and y of each place."""
        height, width = (self.size, self.size) if size is None else size
        x, y = (torch.linspace(-1, 1, side, device=self.device) for side in (width, height))
        return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
