"""The image of a training sample, with its crop and flip."""

from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from ldm import rng
from ldm.data.fields.multichannel import decode_bands
from ldm.data.fields.resize import Crop, covering_size, resize_and_crop
from ldm.data.fields.unreadable import Unreadable, WrongChannelCount
from ldm.data.shards.reader import BadSample, Sample
from ldm.data.shards.tar import IMAGES


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
        return resize_and_crop(pixels, self.crop((pixels.shape[1], pixels.shape[2]), position), "bicubic")

    def crop(self, size: tuple[int, int], position: int) -> Crop:
        """Return the crop of an image of `size` (height, width); its spatial fields use the same crop."""
        height, width = self.shape
        resized = covering_size(*size, height, width)
        left, top = self._corner((resized[1] - width, resized[0] - height), position)
        flip = self.flip and torch.rand((), generator=rng.generator(self.seed, position, "flip")) < 0.5
        return Crop(resized, top, left, self.shape, bool(flip))

    def _corner(self, margin: tuple[int, int], position: int) -> tuple[int, int]:
        if not self.random_crop:
            return margin[0] // 2, margin[1] // 2
        x, y = torch.rand(2, generator=rng.generator(self.seed, position, "crop")).tolist()
        return int(x * (margin[0] + 1)), int(y * (margin[1] + 1))
