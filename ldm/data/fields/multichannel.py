"""Images of any number of channels: the luma of a image, an array's bands, a TIFF's pages."""

from io import BytesIO
from itertools import islice

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageSequence
from torch import Tensor

from ldm.data.fields.decode import Unreadable, decode, pixels, refuse_huge, to_tensor

NPY = b"\x93NUMPY"
EIGHT_BITS, SIXTEEN_BITS = ("L", "LA", "RGB", "RGBA", "CMYK"), ("I;16", "I;16B")
"""Modes of Pillow whose bands are taken as they are stored."""


class WrongChannelCount(Unreadable):
    """A image of another number of bands than was asked for."""


def is_array(data: bytes) -> bool:
    """Whether a file's bytes are a `.npy`."""
    return data.startswith(NPY)


def is_banded(data: bytes, channels: int) -> bool:
    """Whether a file is read by its bands, and not as the colours or the grey of a image."""
    return is_array(data) or channels not in (1, 3)


def bands(data: bytes, channels: int, least: tuple[int, int] | None = None) -> UInt8[Tensor, "c h w"]:
    """A file's image in so many channels, 0..255; Unreadable where it has others.

    A `.npy` holds (height, width, bands), or (height, width) of one band, in uint8 or uint16, of which 65535
    is 255. Of any other file 3 channels are RGB and 1 is luma (ITU-R BT.601), read as by `pixels`; of other
    numbers they are the stored bands of all its pages in order, as those of a TIFF of a grey page a band.
    """
    if not is_banded(data, channels):
        return pixels(data, least) if channels == 3 else _luma(data, least)
    try:
        found = _array(data) if is_array(data) else _pages(data, channels)
    except Unreadable:
        raise
    except Exception as error:  # decoders of foreign bytes raise whatever they like
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    if found.shape[2] != channels:
        raise WrongChannelCount(f"has {found.shape[2]} bands, not {channels}")
    return to_tensor(_eight_bits(found))


def array_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a `.npy`."""
    height, width, _ = _array(data).shape
    return height, width


def _luma(data: bytes, least: tuple[int, int] | None) -> UInt8[Tensor, "1 h w"]:
    return to_tensor(np.array(decode(data, least).convert("L"))[..., None])


def _array(data: bytes) -> UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"]:
    found = np.load(BytesIO(data), allow_pickle=False)
    if found.dtype not in (np.uint8, np.uint16) or found.ndim not in (2, 3) or not found.size:
        raise Unreadable(f"an array of {found.dtype} {found.shape}, not of uint8 or uint16 (h, w, bands)")
    return found if found.ndim == 3 else found[..., None]


def _pages(data: bytes, channels: int) -> UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"]:
    pages = list[np.ndarray]()
    for page in islice(ImageSequence.Iterator(Image.open(BytesIO(data))), channels + 1):
        refuse_huge(page.width, page.height)
        if page.mode not in (*EIGHT_BITS, *SIXTEEN_BITS):
            raise Unreadable(f"a page of mode {page.mode}, not {', '.join(EIGHT_BITS + SIXTEEN_BITS)}")
        whole = np.array(page, np.uint16 if page.mode in SIXTEEN_BITS else np.uint8)
        pages.append(whole if whole.ndim == 3 else whole[..., None])
    if len({(page.shape[:2], page.dtype) for page in pages}) > 1:
        raise Unreadable("pages of several sizes or depths")
    return np.concatenate(pages, -1)


def _eight_bits(
    found: UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"],
) -> UInt8[np.ndarray, "h w c"]:
    return found if found.dtype == np.uint8 else ((found.astype(np.uint32) + 128) // 257).astype(np.uint8)
