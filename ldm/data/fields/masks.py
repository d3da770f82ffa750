"""Random inpainting masks, 255 where the image is to be generated, and masked images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ldm import rng
from ldm.data.loading.batches import DerivedField
from ldm.errors import InvalidValue
from ldm.typing import Depth, FiniteFloat, PositiveFloat, Proportion, Range, Seed


@dataclass
class BrushMask:
    """A few strokes of a broad brush that turns at random (Yu et al. 2019, section 3.4 and its supplement).

    Args:
        seed: all randomness is keyed by (seed, position).
        max_strokes: the number of strokes is from 1 to this.
        segments: straight segments per stroke.
        length, width: the longest segment and the broadest brush, as fractions of the shorter side.
    """

    seed: Seed
    max_strokes: Annotated[int, Range(1, 100)] = 4
    segments: Annotated[int, Range(1, 100)] = 6
    length: Proportion = 0.3
    width: Proportion = 0.15

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        height, width = row["image"].shape[-2:]
        mask = Image.new("L", (width, height))
        pen, unit = ImageDraw.Draw(mask), min(height, width)
        u = torch.rand(
            1 + self.max_strokes * (4 + 2 * self.segments),
            generator=rng.generator(self.seed, position, "strokes"),
        )
        numbers = iter(u.tolist())
        for _ in range(1 + int(next(numbers) * self.max_strokes)):
            x, y, breadth = next(numbers) * width, next(numbers) * height, next(numbers)
            brush = max(1, round(unit * self.width * (0.3 + 0.7 * breadth)))
            angle = 2 * math.pi * next(numbers)
            for _ in range(self.segments):
                angle += 2.4 * (next(numbers) - 0.5)
                step = unit * self.length * next(numbers)
                end_x, end_y = x + step * math.cos(angle), y + step * math.sin(angle)
                end = min(max(end_x, 0), width - 1), min(max(end_y, 0), height - 1)
                pen.line((x, y, *end), fill=255, width=brush)
                x, y = end
                pen.ellipse((x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2), fill=255)
        return {"mask": torch.from_numpy(np.array(mask))[None]}


@dataclass
class RectangleMask:
    """From 1 to `max_rectangles` rectangles; their sides are fractions of the image's, min_side..max_side."""

    seed: Seed
    max_rectangles: Depth = 3
    min_side: Proportion = 0.1
    max_side: Proportion = 0.5

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        height, width = row["image"].shape[-2:]
        mask = torch.zeros(1, height, width, dtype=torch.uint8)
        generator = rng.generator(self.seed, position, "rectangles")
        u = torch.rand(1 + 4 * self.max_rectangles, generator=generator).tolist()
        for i in range(1 + int(u[0] * self.max_rectangles)):
            left, top, w, h = u[1 + 4 * i : 5 + 4 * i]
            w, h = (self.min_side + (self.max_side - self.min_side) * side for side in (w, h))
            x, y = round(left * (1 - w) * width), round(top * (1 - h) * height)
            mask[:, y : y + max(1, round(h * height)), x : x + max(1, round(w * width))] = 255
        return {"mask": mask}


class FullMask:
    """A mask of the whole image: an inpainting model then generates from its other conditions alone."""

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        return {"mask": torch.full((1, *row["image"].shape[-2:]), 255, dtype=torch.uint8)}


class RandomChoice:
    """One of several derived fields, chosen by position with these weights."""

    def __init__(self, ways: Sequence[DerivedField], weights: Sequence[PositiveFloat], seed: Seed) -> None:
        if len(ways) != len(weights) or not ways or min(weights) <= 0:
            raise InvalidValue(f"weights={list(weights)} for {len(ways)} ways: give each one weight above 0")
        self.ways, self.seed = list(ways), seed
        self.bounds = torch.tensor(list(weights), dtype=torch.float64).cumsum(0)

    def __call__(self, row: Mapping[str, Any], position: int) -> Mapping[str, Tensor]:
        u = torch.rand((), generator=rng.generator(self.seed, position, "way"), dtype=torch.float64)
        return self.ways[int(torch.searchsorted(self.bounds, u * self.bounds[-1], right=True))](row, position)


@dataclass
class MaskedImage:
    """The image in [-1, 1], with `fill` under the mask: 0 in Stable Diffusion, -1 in latent diffusion."""

    fill: FiniteFloat

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        x = row["image"].float() / 127.5 - 1
        return {"masked": torch.where(row["mask"] > 127, self.fill, x)}
