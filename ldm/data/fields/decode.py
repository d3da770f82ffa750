"""From the bytes of an image file to upright RGB pixels, decoded at reduced size where possible."""

import warnings
from io import BytesIO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from simplejpeg import decode_jpeg, decode_jpeg_header
from torch import Tensor
from torch.nn.functional import interpolate

MAX_PIXELS = 89_478_485
"""More than any camera's: a larger header is a mistake or an attack, and is rejected before decoding."""
JPEG = b"\xff\xd8\xff"
ORIENTATION = 0x0112
"""The EXIF tag."""

# what Pillow only warns of is rejected or harmless here
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
warnings.filterwarnings("ignore", message="Palette images with Transparency", category=UserWarning)


class Unreadable(ValueError):
    """Bytes that are not a complete image."""


def decode(data: bytes, min_size: tuple[int, int] | None = None) -> Image.Image:
    """Decode as `decode_pixels` does, to a Pillow image."""
    return Image.fromarray(_decode_rgb(data, min_size))


def decode_pixels(data: bytes, min_size: tuple[int, int] | None = None) -> UInt8[Tensor, "3 h w"]:
    """Decode any file that Pillow reads to upright RGB: turned by EXIF, alpha on white, the first frame.

    The format is detected from the content. A JPEG is decoded at 1/2, 1/4 or 1/8 as long as the result is at
    least twice `min_size` (height, width), 47 to 50 dB from the full decode. Decoding is strict: what libjpeg
    only warns of, such as flipped bits, raises Unreadable, like any incomplete image.
    """
    return to_tensor(_decode_rgb(data, min_size))


def _decode_rgb(data: bytes, min_size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    try:
        return _decode_jpeg(data, min_size) if data.startswith(JPEG) else _decode_with_pillow(data)
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("no image of a known format") from error
    except Exception as error:  # decoders raise errors of any type on corrupt bytes
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _decode_with_pillow(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    image: Image.Image = Image.open(BytesIO(data))
    check_pixel_count(image.width, image.height)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return np.array(to_rgb(image))


def _decode_jpeg(data: bytes, min_size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    height, width, space, _ = decode_jpeg_header(data)
    check_pixel_count(width, height)
    if space in ("CMYK", "YCCK"):
        decode_jpeg(data, "CMYK")  # only to be strict; the conversion to RGB is Pillow's
        return _decode_with_pillow(data)
    orientation = _orientation(data)
    stored_min_size = None if min_size is None else min_size[::-1] if orientation > 4 else min_size
    scale = 1 if stored_min_size is None else _jpeg_reduction(height, width, stored_min_size)
    reduced = (-(-height // scale), -(-width // scale)) if scale > 1 else (0, 0)
    pixels = decode_jpeg(data, "RGB", min_height=reduced[0], min_width=reduced[1], min_factor=scale)
    return pixels if orientation == 1 else _turn_upright(pixels, orientation)


def check_pixel_count(width: int, height: int) -> None:
    """Raise Unreadable where a header claims more pixels than any camera has."""
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")


def _jpeg_reduction(height: int, width: int, min_size: tuple[int, int]) -> int:
    """Return the largest reduction by a power of two, fast in libjpeg, that leaves twice `min_size`."""
    limit = min(height / min_size[0], width / min_size[1]) / 2
    return max(scale for scale in (1, 2, 4, 8) if scale <= max(limit, 1))


def _orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG, 1 to 8; 1 is upright."""
    return int(Image.open(BytesIO(data)).getexif().get(ORIENTATION, 1)) if _may_have_exif(data) else 1


def _may_have_exif(data: bytes) -> bool:
    """Return whether a JPEG has a segment for EXIF or XMP (APP1) before its pixels, or unusual segments."""
    at = 2
    while data[at : at + 1] == b"\xff" and (kind := data[at + 1]) != 0xDA:
        if kind == 0xE1 or not 0xC0 <= kind < 0xFF:
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[at : at + 2] != b"\xff\xda"


def _turn_upright(pixels: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    image = Image.fromarray(pixels)
    image.getexif()[ORIENTATION] = orientation
    ImageOps.exif_transpose(image, in_place=True)
    return np.array(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB; transparent pixels become white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Resize so that the short side is `size`, bicubic with antialiasing."""
    short = min(image.size)
    width, height = (max(size, round(side * size / short)) for side in image.size)
    return image if short == size else image.resize((width, height), Image.Resampling.BICUBIC)


def to_tensor(image: Image.Image | UInt8[np.ndarray, "h w c"]) -> UInt8[Tensor, "c h w"]:
    """Return the pixels of an image, channels first in shape but last in memory; do not write to them."""
    return torch.from_numpy(np.asarray(image)).permute(2, 0, 1)


def covering_size(h: int, w: int, height: int, width: int) -> tuple[int, int]:
    """Return the smallest (height, width) of an h x w image that still covers height x width."""
    if height * w >= width * h:
        return height, max(width, round(w * height / h))
    return max(height, round(h * width / w)), width


def resize_to_cover(pixels: UInt8[Tensor, "c h w"], height: int, width: int) -> UInt8[Tensor, "c h2 w2"]:
    """Resize to the smallest image that covers height x width: antialiased bicubic, uint8 throughout."""
    h, w = pixels.shape[1:]
    size = covering_size(h, w, height, width)
    if size == (h, w):
        return pixels
    return interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]
