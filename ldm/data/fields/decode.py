"""From a image file's bytes to upright RGB pixels, as small as the file can give them."""

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
"""More than any camera's: a larger header is a mistake or an attack, and is refused before decoding."""
JPEG = b"\xff\xd8\xff"
ORIENTATION = 0x0112
"""The EXIF tag."""

# what Pillow only warns of is refused or harmless here
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
warnings.filterwarnings("ignore", message="Palette images with Transparency", category=UserWarning)


class Unreadable(ValueError):
    """Bytes that are not a whole image."""


def decode(data: bytes, least: tuple[int, int] | None = None) -> Image.Image:
    """What `pixels` reads, as Pillow's image."""
    return Image.fromarray(_rgb(data, least))


def pixels(data: bytes, least: tuple[int, int] | None = None) -> UInt8[Tensor, "3 h w"]:
    """The upright RGB pixels of any file Pillow reads: turned by EXIF, alpha on white, the first frame.

    The format is found by content. A JPEG is decoded at 1/2, 1/4 or 1/8 as long as it covers `least` (height,
    width) twice over, 47 to 50 dB against the full decode, and strictly: what libjpeg merely warns of, as
    flipped bits, raises Unreadable like all that is no whole image.
    """
    return to_tensor(_rgb(data, least))


def _rgb(data: bytes, least: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    try:
        return _jpeg(data, least) if data.startswith(JPEG) else _any(data)
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("no image of a known format") from error
    except Exception as error:  # decoders of foreign bytes raise whatever they like
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _any(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    image: Image.Image = Image.open(BytesIO(data))
    refuse_huge(image.width, image.height)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return np.array(to_rgb(image))


def _jpeg(data: bytes, least: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    height, width, space, _ = decode_jpeg_header(data)
    refuse_huge(width, height)
    if space in ("CMYK", "YCCK"):
        decode_jpeg(data, "CMYK")  # for its strictness; what the four inks look like, Pillow knows
        return _any(data)
    turn = _orientation(data)
    scale = 1 if least is None else _scale(height, width, least[::-1] if turn > 4 else least)
    reduced = (-(-height // scale), -(-width // scale)) if scale > 1 else (0, 0)
    found = decode_jpeg(data, "RGB", min_height=reduced[0], min_width=reduced[1], min_factor=scale)
    return found if turn == 1 else _upright(found, turn)


def refuse_huge(width: int, height: int) -> None:
    """Unreadable where a header claims more pixels than any camera's."""
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")


def _scale(height: int, width: int, least: tuple[int, int]) -> int:
    """The largest reduction by a power of two, for which libjpeg is quick, that covers `least` twice over."""
    room = min(height / least[0], width / least[1]) / 2
    return max(scale for scale in (1, 2, 4, 8) if scale <= max(room, 1))


def _orientation(data: bytes) -> int:
    """How the camera that made a JPEG was held, as EXIF counts; 1 is upright."""
    return int(Image.open(BytesIO(data)).getexif().get(ORIENTATION, 1)) if _tagged(data) else 1


def _tagged(data: bytes) -> bool:
    """Whether a JPEG has a segment (APP1) for EXIF or XMP before its pixels, or oddly laid out ones."""
    at = 2
    while data[at : at + 1] == b"\xff" and (kind := data[at + 1]) != 0xDA:
        if kind == 0xE1 or not 0xC0 <= kind < 0xFF:
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[at : at + 2] != b"\xff\xda"


def _upright(found: UInt8[np.ndarray, "h w 3"], turn: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    image = Image.fromarray(found)
    image.getexif()[ORIENTATION] = turn
    ImageOps.exif_transpose(image, in_place=True)
    return np.array(image)


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
    """The image with its short side at `size`, bicubic with antialiasing."""
    short = min(image.size)
    width, height = (max(size, round(side * size / short)) for side in image.size)
    return image if short == size else image.resize((width, height), Image.Resampling.BICUBIC)


def to_tensor(image: Image.Image | UInt8[np.ndarray, "h w c"]) -> UInt8[Tensor, "c h w"]:
    """The pixels of a image, channels first in shape and last in memory; to be read alone."""
    return torch.from_numpy(np.asarray(image)).permute(2, 0, 1)


def covering(h: int, w: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) of a image of h x w, as small as it still covers height x width."""
    if height * w >= width * h:
        return height, max(width, round(w * height / h))
    return max(height, round(h * width / w)), width


def cover(pixels: UInt8[Tensor, "c h w"], height: int, width: int) -> UInt8[Tensor, "c h2 w2"]:
    """The image as small as it still covers height x width: antialiased bicubic, in uint8 throughout."""
    h, w = pixels.shape[1:]
    size = covering(h, w, height, width)
    if size == (h, w):
        return pixels
    return interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]
