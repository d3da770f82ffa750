"""Tasks that a model was trained for: by class, layout, map, mask, small picture, picture, or nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm import keyed
from ldm.cli.tasks.base import Txt2Img
from ldm.cli.tasks.files import (
    Size,
    fitted,
    opened,
    read_boxes,
    read_labels,
    read_mask,
    read_numbers,
    read_picture,
)
from ldm.conditioning.base import Conditioner
from ldm.conditioning.boxes import BoxTokens
from ldm.conditioning.class_label import ClassLabel, ClassNumber
from ldm.conditioning.low_resolution import LowResolution
from ldm.conditioning.spatial import SemanticMap
from ldm.errors import UserError
from ldm.model import LatentDiffusion
from ldm.typing import Batch

Wanted = Sequence[tuple[str, int]]


def reader_of(model: LatentDiffusion, key: str) -> Conditioner:
    """The model's condition that reads an entry of the batch; UserError where it has none."""
    each = model.conditioner.conditioners
    for conditioner in each.values():
        if isinstance(conditioner, Conditioner) and key in conditioner.keys:
            return conditioner
    raise UserError(
        f"this model was not trained for the task: no condition of it reads {key}, it has "
        f"{', '.join(each) or 'none'}; give another ckpt=... or task=..."
    )


def rows(wanted: Wanted, **entries: Tensor) -> Batch:
    """The captions, and the one row of each entry for every picture."""
    n = len(wanted)
    batch: Any = {"caption": [prompt for prompt, _ in wanted]}
    return batch | {key: value.expand(n, *value.shape[1:]) for key, value in entries.items()}


class Unconditional(Txt2Img):
    """n pictures from noise alone: by a model without conditions, or with all of them dropped."""

    def batch(self, model: LatentDiffusion, wanted: Wanted, size: Size) -> Batch:
        needed = set(model.conditioner.never_dropped) - set(model.conditioner.told_by({}))
        if needed:
            raise UserError(
                f"this model cannot draw without {', '.join(sorted(needed))}: give the task=... that tells it"
            )
        return {"position": torch.arange(len(wanted))}


class Class(Txt2Img):
    """n pictures of each class.

    Args:
        labels: classes by their numbers.
    """

    def __init__(self, labels: Sequence[int]) -> None:
        if not labels:
            raise UserError("task.labels is empty: give the numbers of classes, as in task.labels=[0,1]")
        self.labels = list(labels)

    def wanted(self, prompts: Sequence[str], cfg: Any) -> list[tuple[str, int]]:
        return [(f"class {label}", cfg.seed + i) for label in self.labels for i in range(cfg.n)]

    def batch(self, model: LatentDiffusion, wanted: Wanted, size: Size) -> Batch:
        conditioner = reader_of(model, "label")
        assert isinstance(conditioner, ClassLabel | ClassNumber)
        for label in self.labels:
            if not isinstance(label, int) or not 0 <= label < conditioner.num_classes:
                raise UserError(
                    f"task.labels holds {label}, and the model's classes are "
                    f"0 to {conditioner.num_classes - 1}"
                )
        return {"label": torch.tensor([int(name.split()[1]) for name, _ in wanted])}


class Layout(Txt2Img):
    """n pictures of a layout.

    Args:
        boxes: a JSON file of [[label, left, top, right, bottom], ...], coordinates in [0, 1].
    """

    def __init__(self, boxes: str) -> None:
        self.boxes = boxes

    def batch(self, model: LatentDiffusion, wanted: Wanted, size: Size) -> Batch:
        conditioner = reader_of(model, "boxes")
        assert isinstance(conditioner, BoxTokens)
        num_labels = conditioner.embedding.num_embeddings
        return rows(wanted, boxes=read_boxes(self.boxes, num_labels, conditioner.num_boxes))


class Semantic(Txt2Img):
    """n pictures of a semantic map.

    Args:
        map: a PNG of the pictures' size, one label a pixel, grey or indexed.
    """

    def __init__(self, map: str) -> None:
        self.map = map

    def batch(self, model: LatentDiffusion, wanted: Wanted, size: Size) -> Batch:
        conditioner = reader_of(model, "segmentation")
        assert isinstance(conditioner, SemanticMap)
        return rows(wanted, segmentation=read_labels(self.map, "map", size, conditioner.num_labels))


class FromMap(Txt2Img):
    """n pictures of a map of numbers: depth, or edges.

    Args:
        map: a grey PNG of the pictures' size, of 8 or 16 bits; white is near, or an edge.
        key: depth or edges, what the map is of.
    """

    def __init__(self, map: str, key: str) -> None:
        self.map, self.key = map, key

    def batch(self, model: LatentDiffusion, wanted: Wanted, size: Size) -> Batch:
        reader_of(model, self.key)
        return rows(wanted, **{self.key: read_numbers(self.map, "map", size)})


class InpaintingModel(Txt2Img):
    """The part of a picture under a mask, by a model that was trained to be told both.

    Args:
        image: the picture's file, scaled to cover the size, its middle cut out.
        mask: a file of the same size, white where the picture is to be drawn.
        fill: under the mask, as in training: 0 (Stable Diffusion) or -1 (latent diffusion).
    """

    def __init__(self, image: str, mask: str, fill: float) -> None:
        if fill not in (0, -1):
            raise UserError(f"task.fill is 0 or -1, as the model was trained with, not {fill}")
        self.image, self.mask, self.fill = image, mask, fill

    def batch(self, model: LatentDiffusion, wanted: Wanted, size: Size) -> Batch:
        for key in ("mask", "masked"):
            reader_of(model, key)
        mask = read_mask(self.mask, self.image, size)
        masked = torch.where(mask > 0, torch.tensor(float(self.fill)), read_picture(self.image, size))
        return rows(wanted, mask=(255 * mask).byte(), masked=masked)

    def finished(self, images: Tensor, size: Size) -> Tensor:
        mask = read_mask(self.mask, self.image, size)
        return torch.where(mask > 0, images, read_picture(self.image, size))


class SuperResolution(Txt2Img):
    """n enlargements of a small picture.

    Args:
        image: the small picture's file, scaled to cover its size, its middle cut out.
        noise_level: t of the noise that is added to it, for a model that is told; 0 is none.
    """

    def __init__(self, image: str, noise_level: int) -> None:
        self.image, self.noise_level = image, noise_level

    def batch(self, model: LatentDiffusion, wanted: Wanted, size: Size) -> Batch:
        conditioner = reader_of(model, "small")
        assert isinstance(conditioner, LowResolution)
        _, height, width = model.latent_shape(*size)
        low = (height * conditioner.factor, width * conditioner.factor)
        picture = opened(self.image, "image")
        if picture.width < low[1] or picture.height < low[0]:
            raise UserError(
                f"task.image={self.image} is {picture.width}x{picture.height}, and pictures of "
                f"{size[1]}x{size[0]} are drawn from {low[1]}x{low[0]}: "
                "give a larger one, or a smaller size=[height,width]"
            )
        entries = {"small": (fitted(picture, low) * 255).round().byte()}
        if conditioner.schedule is None:
            if self.noise_level:
                raise UserError(
                    f"task.noise_level is {self.noise_level}, and this model knows no noise: give 0"
                )
            return rows(wanted, **entries)
        if not 0 <= self.noise_level <= conditioner.schedule.num_steps:
            raise UserError(
                f"task.noise_level is 0 to {conditioner.schedule.num_steps}, not {self.noise_level}"
            )
        seeds = [seed for _, seed in wanted]
        noise = keyed.normal(0, seeds, "noise augmentation", (3, *low))
        level = torch.full((len(wanted),), self.noise_level)
        return {**rows(wanted, **entries), "noise_level": level, "noise": noise}


class ImageVariation(Txt2Img):
    """n pictures that show what another shows.

    Args:
        image: its file, scaled to cover the size, its middle cut out.
    """

    def __init__(self, image: str) -> None:
        self.image = image

    def batch(self, model: LatentDiffusion, wanted: Wanted, size: Size) -> Batch:
        reader_of(model, "image")
        picture = ((read_picture(self.image, size) + 1) * 127.5).round().byte()
        return rows(wanted, image=picture)
