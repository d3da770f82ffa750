"""The image of a training sample, with its crop and flip."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Num, UInt8
from torch import Tensor

from ldm import rng
from ldm.data.fields.decode import Unreadable, covering_size, resize_to_cover
from ldm.data.fields.multichannel import WrongChannelCount, decode_bands
from ldm.data.shards.reader import BadSample, Sample
from ldm.data.shards.tar import IMAGES


class Crop(NamedTuple):
    """The crop of a sample, in pixels of the resized image."""

    resized: tuple[int, int]
    """(height, width) that the image is resized to."""
    top: int
    left: int
    flip: bool
    """Mirrored left to right, after the crop."""


@dataclass
class ImageField:
    """Read a crop of a sample's image; crop and flip are keyed by (seed, position).

    Args:
        size: side of a square, or (height, width).
        channels: 3 is RGB, 1 luma, any other number as in `ldm.data.fields.multichannel`.
    """

    size: int | tuple[int, int]
    seed: int
    random_crop: bool = False
    flip: bool = False
    batch_key: str = "image"
    channels: int = 3

    def __call__(self, sample: Sample, position: int) -> UInt8[Tensor, "c h w"]:
        kind = next((kind for kind in IMAGES if kind in sample.members), IMAGES[0])
        name = f"the image of sample {sample.key} in {sample.shard}"
        try:
            image = decode_bands(sample.read(kind), self.channels, self.shape)
        except WrongChannelCount as error:
            raise BadSample(f"{name} {error}: set data.channels to match, or use other shards") from error
        except Unreadable as error:
            raise BadSample(f"{name} cannot be read ({error}): pack this shard again") from error
        return self.transform(image, position)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the crop."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def transform(self, pixels: UInt8[Tensor, "c h w"], position: int) -> UInt8[Tensor, "c h2 w2"]:
        """Resize to just cover the crop, then crop and possibly flip."""
        height, width = self.shape
        crop = self.crop((pixels.shape[1], pixels.shape[2]), position)
        return apply_crop(resize_to_cover(pixels, height, width), crop, self.shape)

    def crop(self, size: tuple[int, int], position: int) -> Crop:
        """Return the crop of an image of `size` (height, width); its spatial fields use the same crop."""
        height, width = self.shape
        resized = covering_size(*size, height, width)
        left, top = self._corner((resized[1] - width, resized[0] - height), position)
        flip = self.flip and torch.rand((), generator=rng.generator(self.seed, position, "flip")) < 0.5
        return Crop(resized, top, left, bool(flip))

    def _corner(self, margin: tuple[int, int], position: int) -> tuple[int, int]:
        if not self.random_crop:
            return margin[0] // 2, margin[1] // 2
        x, y = torch.rand(2, generator=rng.generator(self.seed, position, "crop")).tolist()
        return int(x * (margin[0] + 1)), int(y * (margin[1] + 1))


def apply_crop(resized: Num[Tensor, "c h w"], crop: Crop, shape: tuple[int, int]) -> Num[Tensor, "c h2 w2"]:
    """Cut the crop out of an image, or a map, that has been resized, and flip it where the crop says so."""
    height, width = shape
    cropped = resized[:, crop.top : crop.top + height, crop.left : crop.left + width]
    return (cropped.flip(2) if crop.flip else cropped).contiguous()
