"""From a picture file's bytes to upright RGB pixels, as small as the file can give them."""

import warnings
from io import BytesIO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torch.nn.functional import interpolate

MAX_PIXELS = 89_478_485
"""More than any camera's: a larger header is a mistake or an attack, and is refused before decoding."""

# what Pillow only warns of is refused or harmless here
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
warnings.filterwarnings("ignore", message="Palette images with Transparency", category=UserWarning)


class Unreadable(ValueError):
    """Bytes that are not a whole picture."""


def decode(data: bytes, least: tuple[int, int] | None = None) -> Image.Image:
    """An upright RGB picture of any file Pillow reads: turned by EXIF, alpha on white, the first frame.

    The format is found by content. A JPEG is decoded at 1/2, 1/4 or 1/8 as long as it covers `least` (height,
    width) twice over: 47 to 50 dB against the full decode. Raises Unreadable.
    """
    try:
        image: Image.Image = Image.open(BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise Unreadable(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
        if least is not None and isinstance(image, JpegImageFile):
            _reduce(image, least)
        image.load()
        if _orientation(image) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("no picture of a known format") from error
    except Exception as error:  # decoders of foreign bytes raise whatever they like
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _orientation(image: Image.Image) -> int:
    """How the camera was held, as EXIF counts; 1 is upright."""
    if isinstance(image, JpegImageFile) and not {"exif", "xmp"} & image.info.keys():
        return 1
    return int(image.getexif().get(0x0112, 1))


def _reduce(image: JpegImageFile, least: tuple[int, int]) -> None:
    if min(image.size) < 4 * min(least):
        return
    height, width = least[::-1] if _orientation(image) > 4 else least  # its width becomes the height
    factor = int(min(image.height / height, image.width / width) / 2)
    if factor >= 2:
        image.draft(None, (image.width // factor, image.height // factor))


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode; what is transparent becomes white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """The picture with its short side at `size`, bicubic with antialiasing."""
    short = min(image.size)
    width, height = (max(size, round(side * size / short)) for side in image.size)
    return image if short == size else image.resize((width, height), Image.Resampling.BICUBIC)


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """The pixels of an RGB picture, channels first in shape and last in memory; to be read alone."""
    return torch.from_numpy(np.asarray(image)).permute(2, 0, 1)


def covering(h: int, w: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) of a picture of h x w, as small as it still covers height x width."""
    if height * w >= width * h:
        return height, max(width, round(w * height / h))
    return max(height, round(h * width / w)), width


def cover(pixels: UInt8[Tensor, "3 h w"], height: int, width: int) -> UInt8[Tensor, "3 h2 w2"]:
    """The picture as small as it still covers height x width: antialiased bicubic, in uint8 throughout."""
    h, w = pixels.shape[1:]
    size = covering(h, w, height, width)
    if size == (h, w):
        return pixels
    return interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]
