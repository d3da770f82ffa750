"""Tasks that a model was trained for: by class, layout, map, mask, small picture, picture, or nothing."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import keyed
from ldm.cli.tasks.base import Conditional, Txt2Img, Wanted
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
from ldm.conditioning.spatial import Mask, SemanticMap
from ldm.data.aligned import stretched
from ldm.errors import UserError
from ldm.model import LatentDiffusion
from ldm.typing import Batch


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


def rows(wanted: Sequence[Wanted], **entries: Tensor) -> Batch:
    """The one row of each entry for every picture."""
    batch: Any = {key: value.expand(len(wanted), *value.shape[1:]) for key, value in entries.items()}
    return batch


class Unconditional(Txt2Img):
    """n pictures from noise alone: by a model without conditions, or with all of them dropped."""

    needs_prompts = captioned = False

    def batch(self, model: LatentDiffusion, wanted: Sequence[Wanted], size: Size) -> Batch:
        return {"position": torch.arange(len(wanted))}


class Class(Conditional):
    """n pictures of each class, and of each prompt if there are any.

    Args:
        labels: classes by their numbers.
    """

    def __init__(self, labels: Sequence[int]) -> None:
        if not labels:
            raise UserError("task.labels is empty: give the numbers of classes, as in task.labels=[0,1]")
        self.labels = list(labels)

    def each(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        return [replace(w, choices={**w.choices, "class": label}) for label in self.labels for w in wanted]

    def batch(self, model: LatentDiffusion, wanted: Sequence[Wanted], size: Size) -> Batch:
        conditioner = reader_of(model, "label")
        assert isinstance(conditioner, ClassLabel | ClassNumber)
        for label in self.labels:
            if not isinstance(label, int) or not 0 <= label < conditioner.num_classes:
                raise UserError(
                    f"task.labels holds {label}, and the model's classes are "
                    f"0 to {conditioner.num_classes - 1}"
                )
        return {"label": torch.tensor([w.choices["class"] for w in wanted])}


class Layout(Conditional):
    """n pictures of a layout.

    Args:
        boxes: a JSON file of [[label, left, top, right, bottom], ...], coordinates in [0, 1].
    """

    def __init__(self, boxes: str) -> None:
        self.boxes = boxes

    def batch(self, model: LatentDiffusion, wanted: Sequence[Wanted], size: Size) -> Batch:
        conditioner = reader_of(model, "boxes")
        assert isinstance(conditioner, BoxTokens)
        num_labels = conditioner.embedding.num_embeddings
        return rows(wanted, boxes=read_boxes(self.boxes, num_labels, conditioner.num_boxes))


class Semantic(Conditional):
    """n pictures of a semantic map.

    Args:
        map: a PNG of the pictures' size, one label a pixel, grey or indexed.
    """

    def __init__(self, map: str) -> None:
        self.map = map

    def batch(self, model: LatentDiffusion, wanted: Sequence[Wanted], size: Size) -> Batch:
        conditioner = reader_of(model, "segmentation")
        assert isinstance(conditioner, SemanticMap)
        return rows(wanted, segmentation=read_labels(self.map, "map", size, conditioner.num_labels))


class FromMap(Conditional):
    """n pictures of a map of numbers, as edges.

    Args:
        map: a grey PNG of the pictures' size, of 8 or 16 bits, white is 1 and black -1.
        key: what the map is of, as edges.
    """

    def __init__(self, map: str, key: str) -> None:
        self.map, self.key = map, key

    def batch(self, model: LatentDiffusion, wanted: Sequence[Wanted], size: Size) -> Batch:
        reader_of(model, self.key)
        return rows(wanted, **{self.key: self.read(size)})

    def read(self, size: Size) -> Float[Tensor, "1 1 h w"]:
        """The map in [-1, 1]."""
        return read_numbers(self.map, "map", size)


class Depth(FromMap):
    """n pictures of a depth map; white is near.

    Args:
        map: a grey PNG of the pictures' size, of 8 or 16 bits.
        normalised: the map's nearest point is 1 and its farthest -1, as `ldm.data.aligned.Depth` was told in
            training.
    """

    def __init__(self, map: str, normalised: bool = False) -> None:
        super().__init__(map, "depth")
        self.normalised = normalised

    def read(self, size: Size) -> Float[Tensor, "1 1 h w"]:
        depth = super().read(size)
        return stretched(depth) if self.normalised else depth


class InpaintingModel(Conditional):
    """The part of a picture under a mask, by a model that was trained to be told both.

    Args:
        image: the picture's file, scaled to cover the size, its middle cut out.
        mask: a file of the same size, white where the picture is to be drawn.
        fill: under the mask, as in training: 0 (Stable Diffusion) or -1 (latent diffusion); None is the
            model's own.
    """

    def __init__(self, image: str, mask: str, fill: float | None) -> None:
        if fill not in (0, -1, None):
            raise UserError(f"task.fill is 0 or -1, as the model was trained with, not {fill}")
        self.image, self.mask, self.fill = image, mask, fill

    def batch(self, model: LatentDiffusion, wanted: Sequence[Wanted], size: Size) -> Batch:
        reader_of(model, "masked")
        conditioner = reader_of(model, "mask")
        assert isinstance(conditioner, Mask)
        if self.fill not in (conditioner.low, None):
            raise UserError(
                f"task.fill={self.fill:g}, and this model was trained with {conditioner.low:g} under "
                "the mask: leave task.fill=null"
            )
        mask, picture = read_mask(self.mask, self.image, size), read_picture(self.image, size)
        masked = torch.where(mask > 0, float(conditioner.low), picture)
        return rows(wanted, mask=(255 * mask).byte(), masked=masked)

    def finished(self, images: Tensor, size: Size) -> Tensor:
        mask = read_mask(self.mask, self.image, size)
        return torch.where(mask > 0, images, read_picture(self.image, size))


class SuperResolution(Conditional):
    """n enlargements of a small picture, each as large as the model's factor makes it.

    Args:
        image: the small picture's file.
        noise_level: t of the noise that is added to it, for a model that is told; 0 is none.
    """

    def __init__(self, image: str, noise_level: int) -> None:
        self.image, self.noise_level = image, noise_level

    def size(self, model: LatentDiffusion) -> Size:
        """That of the whole small picture, enlarged."""
        factor, picture = self.reader(model).factor, opened(self.image, "image")
        unit = factor * model.denoiser.downsampling
        height, width = picture.height, picture.width
        if height % unit or width % unit:
            fitting = [max(side // unit, 1) * unit for side in (width, height)]
            raise UserError(
                f"task.image={self.image} is {width}x{height}, and this model enlarges pictures whose sides "
                f"divide by {unit}: cut it to {fitting[0]}x{fitting[1]}, say"
            )
        pixels = model.first_stage.downsampling
        return height // factor * pixels, width // factor * pixels

    def batch(self, model: LatentDiffusion, wanted: Sequence[Wanted], size: Size) -> Batch:
        conditioner, large = self.reader(model), self.size(model)
        picture = opened(self.image, "image")
        if size != large:
            raise UserError(
                f"size=[{size[0]},{size[1]}], and this model makes [{large[0]},{large[1]}] of "
                f"task.image={self.image}, {picture.width}x{picture.height}: leave size=null, or give "
                "another picture"
            )
        low = (picture.height, picture.width)
        entries = rows(wanted, small=(fitted(picture, low) * 255).round().byte())
        if conditioner.schedule is None:
            if self.noise_level:
                raise UserError(
                    f"task.noise_level is {self.noise_level}, and this model knows no noise: give 0"
                )
            return entries
        if not 0 <= self.noise_level <= conditioner.schedule.num_steps:
            raise UserError(
                f"task.noise_level is 0 to {conditioner.schedule.num_steps}, not {self.noise_level}"
            )
        noise = keyed.normal(0, [w.seed for w in wanted], "noise augmentation", (3, *low))
        level = torch.full((len(wanted),), self.noise_level)
        return {**entries, "noise_level": level, "noise": noise}

    def reader(self, model: LatentDiffusion) -> LowResolution:
        """The model's condition of small pictures."""
        conditioner = reader_of(model, "small")
        assert isinstance(conditioner, LowResolution)
        return conditioner


class ImageVariation(Conditional):
    """n pictures that show what another shows.

    Args:
        image: its file, scaled to cover the size, its middle cut out.
    """

    def __init__(self, image: str) -> None:
        self.image = image

    def batch(self, model: LatentDiffusion, wanted: Sequence[Wanted], size: Size) -> Batch:
        reader_of(model, "image")
        picture = ((read_picture(self.image, size) + 1) * 127.5).round().byte()
        return rows(wanted, image=picture)
