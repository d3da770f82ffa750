"""Show the condition of each demo image as an image of the same size."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm.data.demo.drawing import COLOURS, SHAPES
from ldm.data.demo.maps import KINDS
from ldm.grid import to_pil
from ldm.typing import Batch

FONT_SIZE = 8
LETTERS_PER_LINE = 14
"""In an image 64 wide."""


class ShowCondition(Protocol):
    """Draws one image of each sample's condition."""

    def __call__(self, batch: Batch) -> list[Image.Image]: ...


class ShowCaption:
    """The caption, as text."""

    def __call__(self, batch: Batch) -> list[Image.Image]:
        return [draw_text(caption, _size(batch)) for caption in batch["caption"]]


class ShowClass:
    """The name of the class, as text."""

    def __call__(self, batch: Batch) -> list[Image.Image]:
        return [draw_text(KINDS[int(number)], _size(batch)) for number in batch["label"]]


class ShowNothing:
    """The word "nothing", for unconditional images."""

    def __call__(self, batch: Batch) -> list[Image.Image]:
        return [draw_text("nothing", _size(batch)) for _ in batch["image"]]


class ShowImage:
    """The original image, for variations of it."""

    def __call__(self, batch: Batch) -> list[Image.Image]:
        return [to_pil(x / 127.5 - 1) for x in batch["image"].float()]


class ShowLowResolution:
    """The low-resolution image, enlarged without interpolation."""

    def __call__(self, batch: Batch) -> list[Image.Image]:
        size = _size(batch)
        small = [to_pil(x / 127.5 - 1) for x in batch["small"].float()]
        return [image.resize(size, Image.Resampling.NEAREST) for image in small]


@dataclass
class ShowMap:
    """A batch key with maps in [-1, 1] of the image's size: depth, edges, masked."""

    batch_key: str

    def __call__(self, batch: Batch) -> list[Image.Image]:
        return [to_pil(x) for x in batch[self.batch_key]]  # type: ignore[literal-required]


class ShowSegmentation:
    """The semantic map, each kind of object in its colour."""

    def __call__(self, batch: Batch) -> list[Image.Image]:
        palette = np.array([(255, 255, 255), *(rgb for rgb in COLOURS.values() for _ in SHAPES)], np.uint8)
        return [Image.fromarray(palette[labels.numpy()]) for labels in batch["segmentation"]]


class ShowBoxes:
    """The boxes of a layout, each with the first letter of its shape."""

    def __call__(self, batch: Batch) -> list[Image.Image]:
        return [_draw_boxes(boxes.tolist(), _size(batch)) for boxes in batch["boxes"]]


def draw_text(text: str, size: tuple[int, int]) -> Image.Image:
    """Draw text on a white image of a size (width, height)."""
    image = Image.new("RGB", size, "white")
    lines = "\n".join(textwrap.wrap(text, LETTERS_PER_LINE * size[0] // 64))
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(image).multiline_text((2, 1), lines, fill=(20, 20, 20), font=font, spacing=0)
    return image


def _size(batch: Batch) -> tuple[int, int]:
    height, width = batch["image"].shape[-2:]
    return width, height


def _draw_boxes(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    for label, *corners in boxes:
        if label >= 0:
            colour = list(COLOURS.values())[int(label) // len(SHAPES)]
            sides = (*size, *size)
            pen.rectangle([round(c * (s - 1)) for c, s in zip(corners, sides, strict=True)], outline=colour)
            letter = SHAPES[int(label) % len(SHAPES)][0]
            pen.text((corners[0] * size[0] + 3, corners[1] * size[1] + 2), letter, colour)
    return image
