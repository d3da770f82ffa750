"""Tasks that a model was trained for: class, layout, map, mask, low-resolution image, image, or none."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar, overload

import torch
from PIL import Image
from torch import Tensor

from ldm import rng
from ldm.cli.sampling.plan import Postprocess
from ldm.cli.sampling.tasks.base import Conditional, SampleSpec, Txt2Img, image_channels
from ldm.cli.sampling.tasks.inputs import (
    Size,
    open_image,
    read_boxes,
    read_image,
    read_labels,
    read_mask,
    read_scalar_map,
    resize_and_crop,
    restore_known_pixels,
)
from ldm.conditioning.base import Conditioner
from ldm.conditioning.boxes import BoxTokens
from ldm.conditioning.class_label import ClassLabel, ClassNumber
from ldm.conditioning.low_resolution import LowResolution
from ldm.conditioning.spatial import Mask, SemanticMap
from ldm.errors import UserError
from ldm.model import LatentDiffusion
from ldm.typing import Batch, FiniteFloat, NonNegativeInt, PositiveInt

C = TypeVar("C", bound=Conditioner)
D = TypeVar("D", bound=Conditioner)


def find_conditioner(model: LatentDiffusion, batch_key: str) -> Conditioner:
    """Return the model's conditioner for a batch key; UserError if it has none."""
    conditioners = model.conditioner.conditioners
    for conditioner in conditioners.values():
        if isinstance(conditioner, Conditioner) and batch_key in conditioner.batch_keys:
            return conditioner
    raise UserError(
        f"this model was not trained for this task: it has no condition that uses {batch_key}, only "
        f"{', '.join(conditioners) or 'none'}; choose another ckpt=... or task=..."
    )


@overload
def require_conditioner(model: LatentDiffusion, batch_key: str, kind: type[C], /) -> C: ...


@overload
def require_conditioner(
    model: LatentDiffusion, batch_key: str, kind: type[C], other: type[D], /
) -> C | D: ...


def require_conditioner(model: LatentDiffusion, batch_key: str, *kinds: type[Conditioner]) -> Conditioner:
    """Return the model's conditioner for a batch key; UserError unless it is of one of these classes."""
    conditioner = find_conditioner(model, batch_key)
    if not isinstance(conditioner, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(
            f"this model encodes {batch_key} with {type(conditioner).__name__}, but this task supports "
            f"{names} only: write a task for {type(conditioner).__name__}"
        )
    return conditioner


def repeat_rows(specs: Sequence[SampleSpec], **values: Tensor) -> Batch:
    """Return a batch with the single row of each value repeated for every image."""
    batch: Any = {key: value.expand(len(specs), *value.shape[1:]) for key, value in values.items()}
    return batch


class Unconditional(Txt2Img):
    """Sample n images from noise: of a model without conditions, or with all of them dropped."""

    needs_prompts = uses_prompts = False

    def conditions(self, model: LatentDiffusion, specs: Sequence[SampleSpec], size: Size) -> Batch:
        return {"position": torch.arange(len(specs))}


class Class(Conditional):
    """Sample n images of each class, and of each prompt if there are any.

    Args:
        labels: class indices, a list or one; UserError for anything else.
    """

    def __init__(self, labels: NonNegativeInt | Sequence[NonNegativeInt]) -> None:
        self.labels = [labels] if isinstance(labels, int) else list(labels)
        if not self.labels or any(type(label) is not int for label in self.labels):
            raise UserError(f"task.labels={labels}: expected class indices, for example task.labels=[0,1]")

    def expand(self, specs: Sequence[SampleSpec]) -> list[SampleSpec]:
        return [
            replace(spec, choices={**spec.choices, "class": label}) for label in self.labels for spec in specs
        ]

    def conditions(self, model: LatentDiffusion, specs: Sequence[SampleSpec], size: Size) -> Batch:
        conditioner = require_conditioner(model, "label", ClassLabel, ClassNumber)
        for label in self.labels:
            if not 0 <= label < conditioner.num_classes:
                raise UserError(
                    f"task.labels={label} is out of range: this model has the classes 0 to "
                    f"{conditioner.num_classes - 1}"
                )
        return {"label": torch.tensor([spec.choices["class"] for spec in specs])}


class Layout(Conditional):
    """Sample n images of a layout.

    Args:
        boxes: path of a JSON file of [[label, left, top, right, bottom], ...], coordinates in [0, 1].
    """

    def __init__(self, boxes: str) -> None:
        self.boxes = boxes

    def conditions(self, model: LatentDiffusion, specs: Sequence[SampleSpec], size: Size) -> Batch:
        conditioner = require_conditioner(model, "boxes", BoxTokens)
        num_labels = conditioner.embedding.num_embeddings
        return repeat_rows(specs, boxes=read_boxes(self.boxes, num_labels, conditioner.num_boxes))


class Semantic(Conditional):
    """Sample n images of a semantic map.

    Args:
        map: path of a PNG of the images' size, one label per pixel, grey or indexed.
    """

    def __init__(self, map: str) -> None:
        self.map = map

    def conditions(self, model: LatentDiffusion, specs: Sequence[SampleSpec], size: Size) -> Batch:
        conditioner = require_conditioner(model, "segmentation", SemanticMap)
        return repeat_rows(specs, segmentation=read_labels(self.map, "map", size, conditioner.num_labels))


class FromMap(Conditional):
    """Sample n images of a scalar map: depth, edges.

    Args:
        map: path of a grey PNG of the images' size, 8 or 16 bits, white is 1 and black -1.
        batch_key: what kind of map it is, for example edges.
    """

    def __init__(self, map: str, batch_key: str) -> None:
        self.map, self.batch_key = map, batch_key

    def conditions(self, model: LatentDiffusion, specs: Sequence[SampleSpec], size: Size) -> Batch:
        find_conditioner(model, self.batch_key)
        return repeat_rows(specs, **{self.batch_key: read_scalar_map(self.map, "map", size)})


class InpaintingModel(Conditional):
    """Sample the masked part of an image with a model that was trained for inpainting.

    Args:
        image: path of the image; it is resized to cover the size and center-cropped.
        mask: path of a mask of the same size, white where the image is sampled.
        fill: value of the image under the mask, as in training: 0 (Stable Diffusion) or -1 (latent
            diffusion); None is the model's own.
    """

    def __init__(self, image: str, mask: str, fill: FiniteFloat | None) -> None:
        if fill not in (0, -1, None):
            raise UserError(
                f"task.fill={fill}: use 0 or -1, the value that the model was trained with, or null"
            )
        self.image, self.mask, self.fill = image, mask, fill

    def conditions(self, model: LatentDiffusion, specs: Sequence[SampleSpec], size: Size) -> Batch:
        find_conditioner(model, "masked")
        conditioner = require_conditioner(model, "mask", Mask)
        if self.fill not in (conditioner.background, None):
            raise UserError(
                f"task.fill={self.fill:g}, but this model was trained with {conditioner.background:g} under "
                "the mask: use task.fill=null"
            )
        mask = read_mask(self.mask, self.image, size)
        image = read_image(self.image, size, image_channels(model))
        masked = torch.where(mask > 0, float(conditioner.background), image)
        return repeat_rows(specs, mask=(255 * mask).byte(), masked=masked)

    def postprocess(self, model: LatentDiffusion, size: Size) -> Postprocess:
        return restore_known_pixels(self.image, self.mask, size, image_channels(model))


class SuperResolution(Conditional):
    """Upscale a low-resolution image n times, by the factor that the model was trained with.

    Args:
        image: path of the low-resolution image.
        noise_level: t of the noise added to it, for a model with noise augmentation; None is the lowest, 1.
    """

    def __init__(self, image: str, noise_level: PositiveInt | None) -> None:
        self.image, self.noise_level = image, noise_level

    def input_size(self, model: LatentDiffusion) -> Size:
        """Return the (height, width) of the upscaled image."""
        factor, image = require_conditioner(model, "small", LowResolution).factor, self.open(model)
        unit = factor * model.denoiser.downsampling
        height, width = image.height, image.width
        if height % unit or width % unit:
            nearest = [max(length // unit, 1) * unit for length in (width, height)]
            raise UserError(
                f"task.image={self.image} is {width}x{height}, but its width and height must be multiples of "
                f"{unit} for this model: crop it, for example to {nearest[0]}x{nearest[1]}"
            )
        pixels = model.first_stage.downsampling
        return height // factor * pixels, width // factor * pixels

    def conditions(self, model: LatentDiffusion, specs: Sequence[SampleSpec], size: Size) -> Batch:
        conditioner, upscaled = require_conditioner(model, "small", LowResolution), self.input_size(model)
        image = self.open(model)
        if size != upscaled:
            raise UserError(
                f"size=[{size[0]},{size[1]}], but this model upscales task.image={self.image} "
                f"({image.width}x{image.height}) to [{upscaled[0]},{upscaled[1]}]: use size=null, or another "
                "image"
            )
        low = (image.height, image.width)
        batch = repeat_rows(specs, small=(resize_and_crop(image, low) * 255).round().byte())
        if conditioner.schedule is None:
            if self.noise_level:
                raise UserError(
                    f"task.noise_level={self.noise_level}, but this model was trained without noise "
                    "augmentation: set task.noise_level=null"
                )
            return batch
        level = 1 if self.noise_level is None else self.noise_level
        if type(level) is not int or not 1 <= level <= conditioner.max_noise_level:
            raise UserError(
                f"task.noise_level={level} is out of range: this model was trained with 1 to "
                f"{conditioner.max_noise_level}"
            )
        shape = (image_channels(model), *low)
        noise = rng.normal(0, [spec.seed for spec in specs], "noise augmentation", shape)
        return {**batch, "noise_level": torch.full((len(specs),), level), "noise": noise}

    def open(self, model: LatentDiffusion) -> Image.Image:
        """Return the low-resolution image."""
        return open_image(self.image, "image", image_channels(model))


class ImageVariation(Conditional):
    """Sample n variations of an image.

    Args:
        image: path of the image; it is resized to cover the size and center-cropped.
    """

    def __init__(self, image: str) -> None:
        self.image = image

    def conditions(self, model: LatentDiffusion, specs: Sequence[SampleSpec], size: Size) -> Batch:
        find_conditioner(model, "image")
        image = ((read_image(self.image, size, image_channels(model)) + 1) * 127.5).round().byte()
        return repeat_rows(specs, image=image)
