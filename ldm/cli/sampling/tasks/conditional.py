"""Tasks that a model was trained for: by class, layout, map, mask, small image, image, or nothing."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar, overload

import torch
from PIL import Image
from torch import Tensor

from ldm import rng
from ldm.cli.sampling.tasks.base import Conditional, Postprocess, SampleSpec, Txt2Img, channels
from ldm.cli.sampling.tasks.inputs import (
    Size,
    open_image,
    paste_known,
    read_boxes,
    read_image,
    read_labels,
    read_mask,
    read_scalar_map,
    resize_and_crop,
)
from ldm.conditioning.base import Conditioner
from ldm.conditioning.boxes import BoxTokens
from ldm.conditioning.class_label import ClassLabel, ClassNumber
from ldm.conditioning.low_resolution import LowResolution
from ldm.conditioning.spatial import Mask, SemanticMap
from ldm.errors import UserError
from ldm.model import LatentDiffusion
from ldm.typing import Batch

C = TypeVar("C", bound=Conditioner)
D = TypeVar("D", bound=Conditioner)


def find_conditioner(model: LatentDiffusion, key: str) -> Conditioner:
    """The model's condition that reads an entry of the batch; UserError where it has none."""
    each = model.conditioner.conditioners
    for conditioner in each.values():
        if isinstance(conditioner, Conditioner) and key in conditioner.keys:
            return conditioner
    raise UserError(
        f"this model was not trained for the task: no condition of it reads {key}, it has "
        f"{', '.join(each) or 'none'}; give another ckpt=... or task=..."
    )


@overload
def require_conditioner(model: LatentDiffusion, key: str, kind: type[C], /) -> C: ...


@overload
def require_conditioner(model: LatentDiffusion, key: str, kind: type[C], other: type[D], /) -> C | D: ...


def require_conditioner(model: LatentDiffusion, key: str, *kinds: type[Conditioner]) -> Conditioner:
    """As `find_conditioner`; UserError where it is of none of the kinds, of which the task knows what they take."""
    found = find_conditioner(model, key)
    if not isinstance(found, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(
            f"this model reads {key} by a {type(found).__name__}, and the task knows what a {names} takes: "
            "give a task of your own"
        )
    return found


def rows(wanted: Sequence[SampleSpec], **entries: Tensor) -> Batch:
    """The one row of each entry for every image."""
    batch: Any = {key: value.expand(len(wanted), *value.shape[1:]) for key, value in entries.items()}
    return batch


class Unconditional(Txt2Img):
    """n images from noise alone: by a model without conditions, or with all of them dropped."""

    needs_prompts = captioned = False

    def batch(self, model: LatentDiffusion, wanted: Sequence[SampleSpec], size: Size) -> Batch:
        return {"position": torch.arange(len(wanted))}


class Class(Conditional):
    """n images of each class, and of each prompt if there are any.

    Args:
        labels: a list of classes by their numbers, or one number; UserError for whatever else was given.
    """

    def __init__(self, labels: Any) -> None:
        self.labels = list(labels) if isinstance(labels, list) else [labels]
        if not self.labels or any(type(label) is not int for label in self.labels):
            raise UserError(f"task.labels={labels}: give the numbers of classes, as in task.labels=[0,1]")

    def each(self, wanted: Sequence[SampleSpec]) -> list[SampleSpec]:
        return [replace(w, choices={**w.choices, "class": label}) for label in self.labels for w in wanted]

    def batch(self, model: LatentDiffusion, wanted: Sequence[SampleSpec], size: Size) -> Batch:
        conditioner = require_conditioner(model, "label", ClassLabel, ClassNumber)
        for label in self.labels:
            if not 0 <= label < conditioner.num_classes:
                raise UserError(
                    f"task.labels holds {label}, and the model's classes are "
                    f"0 to {conditioner.num_classes - 1}"
                )
        return {"label": torch.tensor([w.choices["class"] for w in wanted])}


class Layout(Conditional):
    """n images of a layout.

    Args:
        boxes: a JSON file of [[label, left, top, right, bottom], ...], coordinates in [0, 1].
    """

    def __init__(self, boxes: str) -> None:
        self.boxes = boxes

    def batch(self, model: LatentDiffusion, wanted: Sequence[SampleSpec], size: Size) -> Batch:
        conditioner = require_conditioner(model, "boxes", BoxTokens)
        num_labels = conditioner.embedding.num_embeddings
        return rows(wanted, boxes=read_boxes(self.boxes, num_labels, conditioner.num_boxes))


class Semantic(Conditional):
    """n images of a semantic map.

    Args:
        map: a PNG of the images' size, one label a pixel, grey or indexed.
    """

    def __init__(self, map: str) -> None:
        self.map = map

    def batch(self, model: LatentDiffusion, wanted: Sequence[SampleSpec], size: Size) -> Batch:
        conditioner = require_conditioner(model, "segmentation", SemanticMap)
        return rows(wanted, segmentation=read_labels(self.map, "map", size, conditioner.num_labels))


class FromMap(Conditional):
    """n images of a map of numbers: depth, edges.

    Args:
        map: a grey PNG of the images' size, of 8 or 16 bits, white is 1 and black -1.
        key: what the map is of, as edges.
    """

    def __init__(self, map: str, key: str) -> None:
        self.map, self.key = map, key

    def batch(self, model: LatentDiffusion, wanted: Sequence[SampleSpec], size: Size) -> Batch:
        find_conditioner(model, self.key)
        return rows(wanted, **{self.key: read_scalar_map(self.map, "map", size)})


class InpaintingModel(Conditional):
    """The part of a image under a mask, by a model that was trained to be told both.

    Args:
        image: the image's file, scaled to cover the size, its middle cut out.
        mask: a file of the same size, white where the image is to be drawn.
        fill: under the mask, as in training: 0 (Stable Diffusion) or -1 (latent diffusion); None is the
            model's own.
    """

    def __init__(self, image: str, mask: str, fill: float | None) -> None:
        if fill not in (0, -1, None):
            raise UserError(f"task.fill is 0 or -1, as the model was trained with, not {fill}")
        self.image, self.mask, self.fill = image, mask, fill

    def batch(self, model: LatentDiffusion, wanted: Sequence[SampleSpec], size: Size) -> Batch:
        find_conditioner(model, "masked")
        conditioner = require_conditioner(model, "mask", Mask)
        if self.fill not in (conditioner.background, None):
            raise UserError(
                f"task.fill={self.fill:g}, and this model was trained with {conditioner.background:g} under "
                "the mask: leave task.fill=null"
            )
        mask = read_mask(self.mask, self.image, size)
        picture = read_image(self.image, size, channels(model))
        masked = torch.where(mask > 0, float(conditioner.background), picture)
        return rows(wanted, mask=(255 * mask).byte(), masked=masked)

    def finishing(self, model: LatentDiffusion, size: Size) -> Postprocess:
        return paste_known(self.image, self.mask, size, channels(model))


class SuperResolution(Conditional):
    """n enlargements of a small image, each as large as the model's factor makes it.

    Args:
        image: the small image's file.
        noise_level: t of the noise that is added to it, for a model that is told; None is its least, 1.
    """

    def __init__(self, image: str, noise_level: int | None) -> None:
        self.image, self.noise_level = image, noise_level

    def size(self, model: LatentDiffusion) -> Size:
        """That of the whole small image, enlarged."""
        factor, picture = require_conditioner(model, "small", LowResolution).factor, self.small(model)
        unit = factor * model.denoiser.downsampling
        height, width = picture.height, picture.width
        if height % unit or width % unit:
            fitting = [max(side // unit, 1) * unit for side in (width, height)]
            raise UserError(
                f"task.image={self.image} is {width}x{height}, and this model enlarges images whose sides "
                f"divide by {unit}: cut it to {fitting[0]}x{fitting[1]}, say"
            )
        pixels = model.first_stage.downsampling
        return height // factor * pixels, width // factor * pixels

    def batch(self, model: LatentDiffusion, wanted: Sequence[SampleSpec], size: Size) -> Batch:
        conditioner, large = require_conditioner(model, "small", LowResolution), self.size(model)
        picture = self.small(model)
        if size != large:
            raise UserError(
                f"size=[{size[0]},{size[1]}], and this model makes [{large[0]},{large[1]}] of "
                f"task.image={self.image}, {picture.width}x{picture.height}: leave size=null, or give "
                "another image"
            )
        low = (picture.height, picture.width)
        entries = rows(wanted, small=(resize_and_crop(picture, low) * 255).round().byte())
        if conditioner.schedule is None:
            if self.noise_level:
                raise UserError(
                    f"task.noise_level is {self.noise_level}, and this model knows no noise: give null"
                )
            return entries
        level = 1 if self.noise_level is None else self.noise_level
        if type(level) is not int or not 1 <= level <= conditioner.most:
            raise UserError(f"task.noise_level is 1 to {conditioner.most}, as trained, not {level}")
        shape = (channels(model), *low)
        noise = rng.normal(0, [w.seed for w in wanted], "noise augmentation", shape)
        return {**entries, "noise_level": torch.full((len(wanted),), level), "noise": noise}

    def small(self, model: LatentDiffusion) -> Image.Image:
        """The small image itself."""
        return open_image(self.image, "image", channels(model))


class ImageVariation(Conditional):
    """n images that show what another shows.

    Args:
        image: its file, scaled to cover the size, its middle cut out.
    """

    def __init__(self, image: str) -> None:
        self.image = image

    def batch(self, model: LatentDiffusion, wanted: Sequence[SampleSpec], size: Size) -> Batch:
        find_conditioner(model, "image")
        picture = ((read_image(self.image, size, channels(model)) + 1) * 127.5).round().byte()
        return rows(wanted, image=picture)
