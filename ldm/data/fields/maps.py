"""From the bytes of a map or a mask to upright values: labels, grey levels, or where a mask is white.

A map is turned by its own EXIF, if it has any: it belongs to its image as both are displayed.
"""

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image

from ldm.data.fields.colours import alpha_of, png_bits, to_grey
from ldm.data.fields.decode import load_image, report_unreadable, turn_upright
from ldm.data.fields.unreadable import UnsuitableMap

LABEL_MODES = ("1", "L", "P", "I;16")
COLOUR_TOLERANCE = 16
"""By how much the bands of a grey JPEG may differ."""


def decode_labels(data: bytes) -> UInt8[np.ndarray, "h w"]:
    """Return the label of each pixel, 0..255: grey values as stored, or indices into a palette.

    Transparency is ignored. Raises UnsuitableMap for other images, Unreadable for incomplete ones.
    """
    with report_unreadable():
        image, orientation = load_image(data)
        if image.format != "PNG":
            raise UnsuitableMap(f"is a {image.format}, which may change labels: save it as a PNG")
        if image.mode not in LABEL_MODES:
            raise UnsuitableMap(
                f"has mode {image.mode}, but a semantic map is grey (L) or indexed (P): save the label of "
                "each pixel as one byte"
            )
        return turn_upright(_labels(image, data), orientation)


def decode_grey_map(data: bytes) -> Float32[np.ndarray, "h w"]:
    """Return a grey map of any depth, 0 for black to 1 for white.

    Raises UnsuitableMap for colours or transparent pixels, Unreadable for incomplete images.
    """
    with report_unreadable():
        image, orientation = load_image(data)
        alpha = alpha_of(image)
        if alpha is not None and alpha.min() < 255:
            raise UnsuitableMap("has transparent pixels, which have no value: save it without alpha")
        return turn_upright(_grey_levels(image, None), orientation).astype(np.float32)


def decode_mask(data: bytes) -> Float32[np.ndarray, "h w"]:
    """Return how white a mask is, 0 to 1: its grey level times its opacity, so that transparent is 0.

    Raises UnsuitableMap for colours, Unreadable for incomplete images.
    """
    with report_unreadable():
        image, orientation = load_image(data)
        alpha = alpha_of(image)
        levels = _grey_levels(image, alpha)
        white = levels if alpha is None else levels * (alpha / 255)
        return turn_upright(white, orientation).astype(np.float32)


def _grey_levels(image: Image.Image, alpha: UInt8[np.ndarray, "h w"] | None) -> Float64[np.ndarray, "h w"]:
    """Return the grey levels of an image; UnsuitableMap if visible pixels have colours."""
    levels, rgb = to_grey(image)
    if rgb is not None:
        spread = np.ptp(rgb, axis=2)
        visible = spread if alpha is None else spread[alpha > 0]
        if visible.size and visible.max() > COLOUR_TOLERANCE:
            raise UnsuitableMap("has colours: save it in grey, with 8 or 16 bits")
    return levels


def _labels(image: Image.Image, data: bytes) -> UInt8[np.ndarray, "h w"]:
    values = np.asarray(image.convert("L") if image.mode == "1" else image)
    if image.mode in ("1", "L"):  # Pillow scales 1, 2 and 4 bits to 0..255
        values = values // (255 // (2 ** png_bits(data) - 1))
    if values.max() > 255:
        raise UnsuitableMap(f"has the label {values.max()}: use labels from 0 to 255, where 255 is no label")
    return values.astype(np.uint8)
