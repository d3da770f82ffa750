"""From an image of any Pillow mode to sRGB or grey, and what is put behind transparent pixels."""

from functools import lru_cache
from io import BytesIO
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

from ldm.data.fields.unreadable import Unreadable

Background: TypeAlias = Literal["white", "grey", "black", "checker"]
GREYS = {"white": 255, "grey": 128, "black": 0}
CHECKER = (102, 153)
"""Two greys, on which white and black drawings are both visible."""
SQUARES = 16
"""Squares of the checker along the short side of an image."""

PNG = b"\x89PNG"
ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Grey modes of more than 8 bits."""
PROFILE_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
SIGNED, WHITE_IS_ZERO = 2, 0


def to_rgb(image: Image.Image, background: Background = "white") -> Image.Image:
    """Convert an image of any mode to sRGB, by its colour profile.

    `background` shows where it is transparent. Floats are 0..1. Raises Unreadable where the values of black
    and white are not known.
    """
    if image.mode in DEEP_MODES:
        alpha, opaque = _deep_alpha(image), _to_eight_bits(image)
    else:
        alpha, opaque = _alpha(image), _without_alpha(image)
    profile = image.info.get("icc_profile")
    rgb = opaque if profile is None else apply_profile(opaque, profile)
    if alpha is None:
        return rgb if rgb.mode == "RGB" else rgb.convert("RGB")
    rgba = rgb.convert("RGB")
    rgba.putalpha(alpha)
    return Image.alpha_composite(_backdrop(background, image.size), rgba).convert("RGB")


def to_grey(image: Image.Image) -> tuple[Float64[np.ndarray, "h w"], UInt8[np.ndarray, "h w 3"] | None]:
    """Return grey levels in 0..1, the luma of colours, and the RGB of an image that may have colours."""
    if image.mode in DEEP_MODES:
        return deep_levels(image), None
    opaque = _without_alpha(image)
    rgb = None if opaque.mode in ("1", "L") else opaque.convert("RGB")
    levels = np.asarray((rgb or opaque).convert("L"), np.float64) / 255
    return levels, None if rgb is None else np.asarray(rgb)


def is_plain(image: Image.Image) -> bool:
    """Return whether all readers see the same in an image: 8 bits or fewer, and no transparent pixels."""
    alpha = None if image.mode in DEEP_MODES else _alpha(image)
    return image.mode not in DEEP_MODES and (alpha is None or alpha.getextrema()[0] == 255)


def alpha_of(image: Image.Image) -> UInt8[np.ndarray, "h w"] | None:
    """Return the opacity of each pixel, 0..255; None where an image has neither alpha nor transparency."""
    alpha = _deep_alpha(image) if image.mode in DEEP_MODES else _alpha(image)
    return None if alpha is None else np.asarray(alpha)


def deep_levels(image: Image.Image) -> Float64[np.ndarray, "h w"]:
    """Return the values in 0..1 of a grey image of 12, 16 or 32 bits; Unreadable if white is not known."""
    values = np.asarray(image, np.float64)
    if image.mode == "F":
        least, most = float(values.min()), float(values.max())
        if not (least >= 0 and most <= 1):  # NaN is neither
            raise Unreadable(f"floats from {least:.4g} to {most:.4g}, not within 0..1")
        levels = values
    elif image.mode == "I" and image.format not in (None, "PPM"):
        raise Unreadable("32-bit or signed integers, whose black and white are not known")
    else:
        levels = values / (2 ** _tiff_tag(image, BITSPERSAMPLE, 16) - 1)
    return 1 - levels if _tiff_tag(image, PHOTOMETRIC_INTERPRETATION, 1) == WHITE_IS_ZERO else levels


def check_tiff(image: Image.Image) -> None:
    """Raise Unreadable for a TIFF of signed integers, which Pillow reads as unsigned."""
    if image.mode == "L" and _tiff_tag(image, SAMPLEFORMAT, 1) == SIGNED:
        raise Unreadable("signed integers, whose black and white are not known")


def correct_transparency(image: Image.Image, data: bytes) -> None:
    """Scale the transparent colour of a PNG to 8 bits, as Pillow does the pixels, but not this colour."""
    colour: Any = image.info.get("transparency")
    if colour is None or not data.startswith(PNG):
        return
    bits = png_bits(data)
    if image.mode == "L":
        image.info["transparency"] = colour * (255 // (2**bits - 1))
    elif image.mode == "RGB" and bits == 16:
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def png_bits(data: bytes) -> int:
    """Return the bits per value of a PNG, from its header chunk; Pillow scales 1, 2 and 4 bits to 0..255."""
    return data[24]


def apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert an image from its ICC profile to sRGB; as it is where the profile is sRGB or does not fit."""
    if image.mode not in PROFILE_SPACES:
        image = image.convert("L" if image.mode == "1" else "RGB")
    transform = _transform_to_srgb(profile, image.mode)
    if transform is None:
        return image
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted


@lru_cache(maxsize=64)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Cached: building one takes longer than applying it, and the images of a camera share a profile."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        is_srgb = "sRGB" in (source.profile.profile_description or "")
        if is_srgb or source.profile.xcolor_space.strip() != PROFILE_SPACES[mode]:
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):  # corrupt: viewers ignore it
        return None


def _alpha(image: Image.Image) -> Image.Image | None:
    if image.mode in ALPHA_MODES:
        return image.getchannel("A" if image.mode in ("RGBA", "LA", "PA") else "a")
    return image.convert("RGBA").getchannel("A") if "transparency" in image.info else None


def _deep_alpha(image: Image.Image) -> Image.Image | None:
    colour: Any = image.info.get("transparency")
    if colour is None:
        return None
    return Image.fromarray(np.where(np.asarray(image) == colour, 0, 255).astype(np.uint8))


def _to_eight_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray((deep_levels(image) * 255).round().astype(np.uint8))


def _without_alpha(image: Image.Image) -> Image.Image:
    """Return the colours of all pixels, the transparent ones included."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "LA":
        return image.getchannel("L")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        return _opaque(image.convert("RGBA"))
    return image


def _opaque(image: Image.Image) -> Image.Image:
    return Image.merge("RGB", image.split()[:3])


def _backdrop(background: Background, size: tuple[int, int]) -> Image.Image:
    if background != "checker":
        return Image.new("RGBA", size, (GREYS[background],) * 3 + (255,))
    side = max(1, min(size) // SQUARES)
    y, x = np.arange(size[1])[:, None] // side, np.arange(size[0]) // side
    return Image.fromarray(np.array(CHECKER, np.uint8)[(x + y) % 2]).convert("RGBA")


def _tiff_tag(image: Image.Image, tag: int, otherwise: int) -> int:
    """Return the first value of a tag; `otherwise` where it is missing, or the image is no TIFF."""
    value: Any = getattr(image, "tag_v2", {}).get(tag, otherwise)
    return value[0] if isinstance(value, tuple) else value
