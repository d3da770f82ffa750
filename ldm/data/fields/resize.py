"""Resizing of images and maps, whole or only the part that a crop shows."""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Num, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

Interpolation: TypeAlias = Literal["bicubic", "bilinear", "nearest-exact"]
RESAMPLINGS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest-exact": Image.Resampling.NEAREST,
}
MAX_ASPECT = 16
"""Of an image that is resized as a whole: the longer side of a wider one may become millions of pixels."""


class Crop(NamedTuple):
    """The crop of a sample, in pixels of the resized image."""

    resized: tuple[int, int]
    """(height, width) that the image is resized to."""
    top: int
    left: int
    shape: tuple[int, int]
    """(height, width) of the crop."""
    flip: bool
    """Mirrored left to right, after the crop."""


def resize_and_crop(
    x: Num[Tensor, "c h w"], crop: Crop, interpolation: Interpolation
) -> Num[Tensor, "c h2 w2"]:
    """Resize an image or a map, cut the crop out, and flip it where the crop says so.

    Bicubic and bilinear are antialiased. If the resized image would be more than 16 times as long as the
    crop, only what the crop shows is resized, by Pillow, with the same values up to rounding.
    """
    height, width = crop.shape
    is_long = crop.resized[0] > MAX_ASPECT * height or crop.resized[1] > MAX_ASPECT * width
    if is_long and crop.resized != tuple(x.shape[1:]):
        cropped = _resize_crop(x, crop, interpolation)
    else:
        cropped = _resize(x, crop.resized, interpolation)[
            :, crop.top : crop.top + height, crop.left : crop.left + width
        ]
    return (cropped.flip(2) if crop.flip else cropped).contiguous()


def covering_size(h: int, w: int, height: int, width: int) -> tuple[int, int]:
    """Return the smallest (height, width) of an h x w image that still covers height x width."""
    if height * w >= width * h:
        return height, max(width, round(w * height / h))
    return max(height, round(h * width / w)), width


def resize_to_cover(pixels: UInt8[Tensor, "c h w"], height: int, width: int) -> UInt8[Tensor, "c h2 w2"]:
    """Resize to the smallest image that covers height x width: antialiased bicubic, uint8 throughout."""
    _, h, w = pixels.shape
    return _resize(pixels, covering_size(h, w, height, width), "bicubic")


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Resize so that the short side is `size`, bicubic with antialiasing."""
    short = min(image.size)
    width, height = (max(size, round(side * size / short)) for side in image.size)
    return image if short == size else image.resize((width, height), Image.Resampling.BICUBIC)


def _resize(
    x: Num[Tensor, "c h w"], size: tuple[int, int], interpolation: Interpolation
) -> Num[Tensor, "c h2 w2"]:
    if size == tuple(x.shape[1:]):
        return x
    smooth = {} if interpolation == "nearest-exact" else {"antialias": True, "align_corners": False}
    return interpolate(x[None], size, mode=interpolation, **smooth)[0]


def _resize_crop(x: Num[Tensor, "c h w"], crop: Crop, interpolation: Interpolation) -> Num[Tensor, "c h2 w2"]:
    h, w = x.shape[1:]
    (height, width), (resized_height, resized_width) = crop.shape, crop.resized
    box = (  # in pixels of x
        crop.left * w / resized_width,
        crop.top * h / resized_height,
        min((crop.left + width) * w / resized_width, w),
        min((crop.top + height) * h / resized_height, h),
    )
    bands = [
        np.array(Image.fromarray(band).resize((width, height), RESAMPLINGS[interpolation], box))
        for band in x.numpy()
    ]
    return torch.from_numpy(np.stack(bands))
