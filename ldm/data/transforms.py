"""The crop and flip of a training sample."""

from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from ldm import keyed
from ldm.data.decode import Unreadable, cover, pixels
from ldm.data.reader import BadSample, Sample
from ldm.data.tar import PICTURES


@dataclass
class Pictures:
    """Reads a sample's picture as a crop; crop and flip are keyed by (seed, position).

    Args:
        size: side of a square, or (height, width).
    """

    size: int | tuple[int, int]
    seed: int
    random_crop: bool = False
    flip: bool = False
    field: str = "image"

    def __call__(self, sample: Sample, position: int) -> UInt8[Tensor, "3 h w"]:
        kind = next((kind for kind in PICTURES if kind in sample.members), PICTURES[0])
        try:
            image = pixels(sample.read(kind), self.shape)
        except Unreadable as error:
            where = f"the picture of sample {sample.key} in {sample.shard}"
            raise BadSample(f"{where} cannot be read ({error}): pack this shard again") from error
        return self.transform(image, position)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def transform(self, pixels: UInt8[Tensor, "3 h w"], position: int) -> UInt8[Tensor, "3 h2 w2"]:
        """Reduce until it just covers the crop, crop, perhaps mirror it."""
        height, width = self.shape
        pixels = cover(pixels, height, width)
        left, top = self._corner((pixels.shape[2] - width, pixels.shape[1] - height), position)
        pixels = pixels[:, top : top + height, left : left + width]
        if self.flip and torch.rand((), generator=keyed.generator(self.seed, position, "flip")) < 0.5:
            pixels = pixels.flip(2)
        return pixels.contiguous()

    def _corner(self, room: tuple[int, int], position: int) -> tuple[int, int]:
        if not self.random_crop:
            return room[0] // 2, room[1] // 2
        x, y = torch.rand(2, generator=keyed.generator(self.seed, position, "crop")).tolist()
        return int(x * (room[0] + 1)), int(y * (room[1] + 1))
