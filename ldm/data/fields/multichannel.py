"""Images of any number of channels: the luma of an image, the bands of an array, the pages of a TIFF."""

from io import BytesIO
from itertools import islice

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import ImageSequence
from torch import Tensor

from ldm.data.fields.colours import deep_levels
from ldm.data.fields.decode import (
    check_pixel_count,
    decode,
    decode_pixels,
    load_image,
    report_unreadable,
    to_tensor,
    turn_upright,
)
from ldm.data.fields.unreadable import Unreadable, WrongChannelCount

NPY = b"\x93NUMPY"
EIGHT_BITS, SIXTEEN_BITS = ("L", "LA", "RGB", "RGBA", "CMYK"), ("I;16", "I;16B")
"""Pillow modes whose bands are used as stored."""


def is_array(data: bytes) -> bool:
    """Return whether these are the bytes of a `.npy` file."""
    return data.startswith(NPY)


def is_banded(data: bytes, channels: int) -> bool:
    """Return whether a file is read band by band, not as the RGB or luma of an image."""
    return is_array(data) or channels not in (1, 3)


def decode_bands(
    data: bytes, channels: int, min_size: tuple[int, int] | None = None
) -> UInt8[Tensor, "c h w"]:
    """Decode a file to `channels` channels in 0..255; raise Unreadable where it has another number.

    A `.npy` holds (height, width, bands), or (height, width) of one band, in uint8 or uint16, whose 65535
    becomes 255. Of any other file 3 channels are RGB and 1 is luma (ITU-R BT.601), as by `decode_pixels`; any
    other number are the stored bands of all its pages in order, as in a TIFF with one grey page per band,
    turned by EXIF.
    """
    if not is_banded(data, channels):
        return decode_pixels(data, min_size) if channels == 3 else _decode_luma(data, min_size)
    with report_unreadable():
        array = _load_array(data) if is_array(data) else _decode_pages(data, channels)
    if array.shape[2] != channels:
        raise WrongChannelCount(f"has {array.shape[2]} bands, not {channels}")
    return to_tensor(_to_uint8(array))


def array_size(data: bytes) -> tuple[int, int]:
    """Return the (height, width) of a `.npy`."""
    height, width, _ = _load_array(data).shape
    return height, width


def _decode_luma(data: bytes, min_size: tuple[int, int] | None) -> UInt8[Tensor, "1 h w"]:
    return to_tensor(np.array(decode(data, min_size).convert("L"))[..., None])


def _load_array(data: bytes) -> UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"]:
    array = np.load(BytesIO(data), allow_pickle=False)
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (2, 3) or not array.size:
        raise Unreadable(f"an array of {array.dtype} {array.shape}, not of uint8 or uint16 (h, w, bands)")
    return array if array.ndim == 3 else array[..., None]


def _decode_pages(data: bytes, channels: int) -> UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"]:
    first, orientation = load_image(data)
    pages = list[np.ndarray]()
    for page in islice(ImageSequence.Iterator(first), channels + 1):
        check_pixel_count(page.width, page.height)
        if page.mode not in (*EIGHT_BITS, *SIXTEEN_BITS):
            raise Unreadable(f"a page of mode {page.mode}, not {', '.join(EIGHT_BITS + SIXTEEN_BITS)}")
        is_deep = page.mode in SIXTEEN_BITS
        array = (deep_levels(page) * 65535).round().astype(np.uint16) if is_deep else np.array(page)
        pages.append(array if array.ndim == 3 else array[..., None])
    if len({(page.shape[:2], page.dtype) for page in pages}) > 1:
        raise Unreadable("pages of different sizes or bit depths")
    return turn_upright(np.concatenate(pages, -1), orientation)


def _to_uint8(
    array: UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"],
) -> UInt8[np.ndarray, "h w c"]:
    return array if array.dtype == np.uint8 else ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
