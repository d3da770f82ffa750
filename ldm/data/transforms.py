"""From a picture file's bytes to uint8 pixels, and the crop and flip of a training sample."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ldm import keyed
from ldm.data.reader import Shard
from ldm.errors import UserError

IMAGE_KINDS = ("jpg", "jpeg", "png", "webp")


class Unreadable(ValueError):
    """Bytes that are not a whole picture."""


def decode(data: bytes) -> Image.Image:
    """An upright RGB picture of any file Pillow reads: turned by EXIF, alpha on white."""
    try:
        image = Image.open(BytesIO(data))
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise Unreadable("no picture of a known format") from error
    except Exception as error:  # decoders of foreign bytes raise whatever they like
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode; what is transparent becomes white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """The picture with its short side at `size`, bicubic with antialiasing."""
    short = min(image.size)
    width, height = (max(size, round(side * size / short)) for side in image.size)
    return image if short == size else image.resize((width, height), Image.Resampling.BICUBIC)


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """The pixels of an RGB picture, channels first."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@dataclass
class Pictures:
    """Reads a sample's picture as a `size` x `size` crop; crop and flip are keyed by (seed, position)."""

    size: int
    seed: int
    random_crop: bool = False
    flip: bool = False
    field = "image"

    def __call__(self, shard: Shard, row: int, position: int) -> UInt8[Tensor, "3 size size"]:
        kind = next((kind for kind in IMAGE_KINDS if shard.has(row, kind)), IMAGE_KINDS[0])
        try:
            return to_tensor(self.transform(decode(shard.read(row, kind)), position))
        except Unreadable as error:
            where = f"the picture of sample {shard.key(row)} in {shard.path}"
            raise UserError(f"{where} cannot be read ({error}): pack this shard again") from error

    def transform(self, image: Image.Image, position: int) -> Image.Image:
        """Resize the short side, crop a square, perhaps mirror it."""
        image = resize_short_side(image, self.size)
        room = (image.width - self.size, image.height - self.size)
        left, top = self._corner(room, position)
        image = image.crop((left, top, left + self.size, top + self.size))
        if self.flip and torch.rand((), generator=keyed.generator(self.seed, position, "flip")) < 0.5:
            image = ImageOps.mirror(image)
        return image

    def _corner(self, room: tuple[int, int], position: int) -> tuple[int, int]:
        if not self.random_crop:
            return room[0] // 2, room[1] // 2
        x, y = torch.rand(2, generator=keyed.generator(self.seed, position, "crop")).tolist()
        return int(x * (room[0] + 1)), int(y * (room[1] + 1))
