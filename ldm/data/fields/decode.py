"""From the bytes of an image file to upright RGB pixels, decoded at reduced size where possible."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from simplejpeg import decode_jpeg, decode_jpeg_header
from torch import Tensor

from ldm.data.fields.colours import Background, apply_profile, check_tiff, correct_transparency, to_rgb
from ldm.data.fields.unreadable import TooManyPixels, Unreadable

MAX_PIXELS = 89_478_485
"""More than any camera's: a larger header is a mistake or an attack, and is rejected before decoding."""
JPEG = b"\xff\xd8\xff"
PNG_METADATA = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""What a PNG contains if it may state an orientation."""

# what Pillow only warns of is rejected or harmless here
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
warnings.filterwarnings("ignore", message="Palette images with Transparency", category=UserWarning)


def decode(
    data: bytes, min_size: tuple[int, int] | None = None, background: Background = "white"
) -> Image.Image:
    """Decode as `decode_pixels` does, to a Pillow image."""
    return Image.fromarray(_decode_rgb(data, min_size, background))


def decode_pixels(data: bytes, min_size: tuple[int, int] | None = None) -> UInt8[Tensor, "3 h w"]:
    """Decode any file that Pillow reads to upright sRGB: turned by EXIF, alpha on white, the first frame.

    The format is detected from the content. A JPEG is decoded at 1/2, 1/4 or 1/8 as long as the result is at
    least twice `min_size` (height, width), 47 to 50 dB from the full decode. Decoding is strict: what libjpeg
    only warns of, such as flipped bits, raises Unreadable, like any incomplete image, and like values whose
    black and white are not known.
    """
    return to_tensor(_decode_rgb(data, min_size, "white"))


def load_image(data: bytes) -> tuple[Image.Image, int]:
    """Return the first frame of an image file as it is stored, and the EXIF orientation that turns it."""
    image = open_image(data)
    image.load()
    check_tiff(image)
    return image, _orientation(image, data)


def upright_size(data: bytes) -> tuple[int, int]:
    """Return the (height, width) of an image once it is upright, from its headers."""
    with report_unreadable():
        image = open_image(data)
        is_turned = image.format != "TIFF" and _orientation(image, data) > 4  # Pillow turns a TIFF itself
        return (image.width, image.height) if is_turned else (image.height, image.width)


def turn_upright(pixels: Shaped[np.ndarray, "h w *c"], orientation: int) -> Shaped[np.ndarray, "h2 w2 *c"]:
    """Turn and mirror pixels by an EXIF orientation, 1 to 8; 1 is upright."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


@contextmanager
def report_unreadable() -> Iterator[None]:
    """Turn whatever a decoder raises into Unreadable: on corrupt bytes, errors of any type."""
    try:
        yield
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("no image of a known format") from error
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _decode_rgb(
    data: bytes, min_size: tuple[int, int] | None, background: Background
) -> UInt8[np.ndarray, "h w 3"]:
    with report_unreadable():
        return _decode_jpeg(data, min_size) if data.startswith(JPEG) else _decode_any(data, background)


def _decode_any(data: bytes, background: Background) -> UInt8[np.ndarray, "h w 3"]:
    image, orientation = load_image(data)
    return turn_upright(np.array(to_rgb(image, background)), orientation)


def _decode_jpeg(data: bytes, min_size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    height, width, space, _ = decode_jpeg_header(data)
    check_pixel_count(width, height)
    if space in ("CMYK", "YCCK"):
        decode_jpeg(data, "CMYK")  # only to be strict; the conversion to RGB is Pillow's
        return _decode_any(data, "white")
    orientation, profile = _jpeg_metadata(data)
    stored_min_size = None if min_size is None else min_size[::-1] if orientation > 4 else min_size
    scale = 1 if stored_min_size is None else _jpeg_reduction(height, width, stored_min_size)
    reduced = (-(-height // scale), -(-width // scale)) if scale > 1 else (0, 0)
    pixels = decode_jpeg(data, "RGB", min_height=reduced[0], min_width=reduced[1], min_factor=scale)
    if profile is not None:
        image = Image.fromarray(pixels[..., 0] if space == "Gray" else pixels)
        pixels = np.array(apply_profile(image, profile).convert("RGB"))
    return pixels if orientation == 1 else turn_upright(pixels, orientation)


def check_pixel_count(width: int, height: int) -> None:
    """Raise TooManyPixels where a header claims more pixels than any camera has."""
    if width * height > MAX_PIXELS:
        raise TooManyPixels(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")


def open_image(data: bytes) -> Image.Image:
    """Read the headers of an image file; TooManyPixels for one that is too large."""
    image = Image.open(BytesIO(data))
    check_pixel_count(image.width, image.height)
    correct_transparency(image, data)
    return image


def _jpeg_reduction(height: int, width: int, min_size: tuple[int, int]) -> int:
    """Return the largest reduction by a power of two, fast in libjpeg, that leaves twice `min_size`."""
    limit = min(height / min_size[0], width / min_size[1]) / 2
    return max(scale for scale in (1, 2, 4, 8) if scale <= max(limit, 1))


def _jpeg_metadata(data: bytes) -> tuple[int, bytes | None]:
    """Return the EXIF orientation and the colour profile of a JPEG."""
    if not _may_have_metadata(data):
        return 1, None
    image = Image.open(BytesIO(data))
    return _orientation(image, data), image.info.get("icc_profile")


def _may_have_metadata(data: bytes) -> bool:
    """Return whether EXIF, XMP (APP1), a profile (APP2) or unusual segments precede the pixels of a JPEG."""
    at = 2
    while data[at : at + 1] == b"\xff" and (kind := data[at + 1]) != 0xDA:
        if kind in (0xE1, 0xE2) or not 0xC0 <= kind < 0xFF:
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[at : at + 2] != b"\xff\xda"


def _orientation(image: Image.Image, data: bytes) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none, or none that can be read."""
    if image.format == "PNG" and not any(name in data for name in PNG_METADATA):
        return 1  # Pillow would decode the pixels to look behind them
    try:
        orientation: Any = image.getexif().get(Base.Orientation)
    except Exception:  # viewers show an image with corrupt EXIF as it is stored
        return 1
    return orientation if orientation in range(1, 9) else 1


def to_tensor(image: Image.Image | UInt8[np.ndarray, "h w c"]) -> UInt8[Tensor, "c h w"]:
    """Return the pixels of an image, channels first in shape but last in memory; do not write to them."""
    return torch.from_numpy(np.asarray(image)).permute(2, 0, 1)
