"""What a demo image was drawn from, shown as a image of the same size: beside it a reader sees both."""

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
LETTERS = 14
"""In a line of a image 64 wide."""


class ShowCondition(Protocol):
    """One image of each sample's condition."""

    def __call__(self, batch: Batch) -> list[Image.Image]: ...


class Caption:
    """The words themselves."""

    def __call__(self, batch: Batch) -> list[Image.Image]:
        return [draw_text(words, _size(batch)) for words in batch["caption"]]


class ClassName:
    """The words for a class's number."""

    def __call__(self, batch: Batch) -> list[Image.Image]:
        return [draw_text(KINDS[int(number)], _size(batch)) for number in batch["label"]]


class Nothing:
    """Of images from noise alone."""

    def __call__(self, batch: Batch) -> list[Image.Image]:
        return [draw_text("nothing", _size(batch)) for _ in batch["image"]]


class ConditionImage:
    """The sample's own image."""

    def __call__(self, batch: Batch) -> list[Image.Image]:
        return [to_pil(x / 127.5 - 1) for x in batch["image"].float()]


class LowResolutionImage:
    """The small image, its pixels as large as they are of the large one."""

    def __call__(self, batch: Batch) -> list[Image.Image]:
        size = _size(batch)
        small = [to_pil(x / 127.5 - 1) for x in batch["small"].float()]
        return [image.resize(size, Image.Resampling.NEAREST) for image in small]


@dataclass
class Map:
    """An entry that is in [-1, 1] and of the image's size: depth, edges, the image under its mask."""

    batch_key: str

    def __call__(self, batch: Batch) -> list[Image.Image]:
        return [to_pil(x) for x in batch[self.batch_key]]  # type: ignore[literal-required]


class Labels:
    """A semantic map, each kind of object in its colour."""

    def __call__(self, batch: Batch) -> list[Image.Image]:
        palette = np.array([(255, 255, 255), *(rgb for rgb in COLOURS.values() for _ in SHAPES)], np.uint8)
        return [Image.fromarray(palette[labels.numpy()]) for labels in batch["segmentation"]]


class Boxes:
    """A layout's frames, each with its shape's first letter."""

    def __call__(self, batch: Batch) -> list[Image.Image]:
        return [_framed(boxes.tolist(), _size(batch)) for boxes in batch["boxes"]]


def draw_text(words: str, size: tuple[int, int]) -> Image.Image:
    """Words on a white image of a size (width, height)."""
    image = Image.new("RGB", size, "white")
    lines = "\n".join(textwrap.wrap(words, LETTERS * size[0] // 64))
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(image).multiline_text((2, 1), lines, fill=(20, 20, 20), font=font, spacing=0)
    return image


def _size(batch: Batch) -> tuple[int, int]:
    height, width = batch["image"].shape[-2:]
    return width, height


def _framed(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> Image.Image:
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
