"""The crop and flip of a training sample."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Num, UInt8
from torch import Tensor

from ldm import rng
from ldm.data.fields.decode import Unreadable, cover, covering
from ldm.data.fields.multichannel import WrongChannelCount, bands
from ldm.data.shards.reader import BadSample, Sample
from ldm.data.shards.tar import IMAGES


class Crop(NamedTuple):
    """Where in a image a sample's crop lies, in pixels of the image once it is resized."""

    resized: tuple[int, int]
    """(height, width) that the image is resized to."""
    top: int
    left: int
    flip: bool
    """Mirrored left to right, after the crop."""


@dataclass
class ImageField:
    """Reads a sample's image as a crop; crop and flip are keyed by (seed, position).

    Args:
        size: side of a square, or (height, width).
        channels: 3 is RGB, 1 luma, others as `ldm.data.fields.multichannel` has them.
    """

    size: int | tuple[int, int]
    seed: int
    random_crop: bool = False
    flip: bool = False
    batch_key: str = "image"
    channels: int = 3

    def __call__(self, sample: Sample, position: int) -> UInt8[Tensor, "c h w"]:
        kind = next((kind for kind in IMAGES if kind in sample.members), IMAGES[0])
        where = f"the image of sample {sample.key} in {sample.shard}"
        try:
            image = bands(sample.read(kind), self.channels, self.shape)
        except WrongChannelCount as error:
            raise BadSample(f"{where} {error}: set data.channels to what it has, or pack others") from error
        except Unreadable as error:
            raise BadSample(f"{where} cannot be read ({error}): pack this shard again") from error
        return self.transform(image, position)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def transform(self, pixels: UInt8[Tensor, "c h w"], position: int) -> UInt8[Tensor, "c h2 w2"]:
        """Reduce until it just covers the crop, crop, perhaps mirror it."""
        height, width = self.shape
        crop = self.crop((pixels.shape[1], pixels.shape[2]), position)
        return cut(cover(pixels, height, width), crop, self.shape)

    def crop(self, size: tuple[int, int], position: int) -> Crop:
        """The crop of a image of `size` (height, width); what is aligned with the image shares it."""
        height, width = self.shape
        resized = covering(*size, height, width)
        left, top = self._corner((resized[1] - width, resized[0] - height), position)
        flip = self.flip and torch.rand((), generator=rng.generator(self.seed, position, "flip")) < 0.5
        return Crop(resized, top, left, bool(flip))

    def _corner(self, room: tuple[int, int], position: int) -> tuple[int, int]:
        if not self.random_crop:
            return room[0] // 2, room[1] // 2
        x, y = torch.rand(2, generator=rng.generator(self.seed, position, "crop")).tolist()
        return int(x * (room[0] + 1)), int(y * (room[1] + 1))


def cut(resized: Num[Tensor, "c h w"], crop: Crop, shape: tuple[int, int]) -> Num[Tensor, "c h2 w2"]:
    """The crop of a image, or of a map, that has been resized."""
    height, width = shape
    found = resized[:, crop.top : crop.top + height, crop.left : crop.left + width]
    return (found.flip(2) if crop.flip else found).contiguous()
