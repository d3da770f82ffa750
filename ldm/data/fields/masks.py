"""Masks made on the fly, 255 where the image is to be drawn anew, and images under them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ldm import rng
from ldm.data.loading.batches import DerivedField
from ldm.errors import InvalidValue


@dataclass
class BrushMask:
    """A few strokes of a broad brush that turns as it goes (Yu et al. 2019, section 3.4 and its supplement).

    Args:
        seed: of all that is drawn, keyed by (seed, position).
        most: strokes, of which there is at least one.
        turns: the most corners of a stroke.
        length, width: the longest part and the broadest brush, in shares of the shorter side.
    """

    seed: int
    most: int = 4
    steps_of_this_worker: int = 6
    length: float = 0.3
    width: float = 0.15

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        height, width = row["image"].shape[-2:]
        mask = Image.new("L", (width, height))
        pen, unit = ImageDraw.Draw(mask), min(height, width)
        u = torch.rand(
            1 + self.most * (4 + 2 * self.steps_of_this_worker),
            generator=rng.generator(self.seed, position, "strokes"),
        )
        numbers = iter(u.tolist())
        for _ in range(1 + int(next(numbers) * self.most)):
            x, y, broad = next(numbers) * width, next(numbers) * height, next(numbers)
            brush = max(1, round(unit * self.width * (0.3 + 0.7 * broad)))
            angle = 2 * math.pi * next(numbers)
            for _ in range(self.steps_of_this_worker):
                angle += 2.4 * (next(numbers) - 0.5)
                step = unit * self.length * next(numbers)
                across, down = x + step * math.cos(angle), y + step * math.sin(angle)
                to = min(max(across, 0), width - 1), min(max(down, 0), height - 1)
                pen.line((x, y, *to), fill=255, width=brush)
                x, y = to
                pen.ellipse((x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2), fill=255)
        return {"mask": torch.from_numpy(np.array(mask))[None]}


@dataclass
class RectangleMask:
    """Up to `most` upright rectangles, each side a share of the image's from `least` to `largest`."""

    seed: int
    most: int = 3
    least: float = 0.1
    largest: float = 0.5

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        height, width = row["image"].shape[-2:]
        mask = torch.zeros(1, height, width, dtype=torch.uint8)
        u = torch.rand(1 + 4 * self.most, generator=rng.generator(self.seed, position, "rectangles")).tolist()
        for i in range(1 + int(u[0] * self.most)):
            left, top, w, h = u[1 + 4 * i : 5 + 4 * i]
            w, h = (self.least + (self.largest - self.least) * side for side in (w, h))
            x, y = round(left * (1 - w) * width), round(top * (1 - h) * height)
            mask[:, y : y + max(1, round(h * height)), x : x + max(1, round(w * width))] = 255
        return {"mask": mask}


class FullMask:
    """All of the image: what an inpainting model draws from its text alone."""

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        return {"mask": torch.full((1, *row["image"].shape[-2:]), 255, dtype=torch.uint8)}


class RandomChoice:
    """One of several ways to make an entry, drawn by the position with these weights."""

    def __init__(self, ways: Sequence[DerivedField], weights: Sequence[float], seed: int) -> None:
        if len(ways) != len(weights) or not ways or min(weights) <= 0:
            raise InvalidValue(f"{len(ways)} ways need as many weights above 0, not {list(weights)}")
        self.ways, self.seed = list(ways), seed
        self.bounds = torch.tensor(list(weights), dtype=torch.float64).cumsum(0)

    def __call__(self, row: Mapping[str, Any], position: int) -> Mapping[str, Tensor]:
        u = torch.rand((), generator=rng.generator(self.seed, position, "way"), dtype=torch.float64)
        return self.ways[int(torch.searchsorted(self.bounds, u * self.bounds[-1], right=True))](row, position)


@dataclass
class MaskedImage:
    """The image in [-1, 1], `fill` where the mask is: 0 in Stable Diffusion, -1 in latent diffusion."""

    fill: float

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        x = row["image"].float() / 127.5 - 1
        return {"masked": torch.where(row["mask"] > 127, self.fill, x)}
