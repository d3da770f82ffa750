"""Metrics of how well demo images follow their condition: one number per image."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from ldm.data.demo.drawing import BACKGROUNDS, CANVAS, COLOURS, SHAPES
from ldm.data.demo.maps import KINDS
from ldm.data.fields.degradations import edge_map
from ldm.evaluation.demo.alignment import check_caption
from ldm.evaluation.demo.scene_reader import DetectedObject, SceneReading, read_scenes, size_map
from ldm.typing import Batch, Image

EDGE_THRESHOLD = -0.8
"""Edge strength in [-1, 1] above which a pixel is an edge: a step of a tenth of black to white."""


class Metric(ABC):
    """A score of images in [-1, 1] against the conditions of their batch: one number per image."""

    unit: str
    lower_is_better = False
    is_proportion = True
    """Whether each number is 0 or 1, so that the mean is a proportion with a Wilson interval."""

    @abstractmethod
    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]: ...

    def prepare(self, images: Image, batch: Batch) -> Image:
        """Return the images as a user receives them."""
        return images

    def baselines(self, batch: Batch) -> dict[str, Image]:
        """Return images by methods without a model, by the name of the method."""
        return {}


class CaptionAccuracy(Metric):
    """1 if the image shows all of its caption, except for sizes."""

    unit = "all correct"

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        verdicts = [check_caption(r, c) for r, c in zip(read_scenes(images), batch["caption"], strict=True)]
        return torch.tensor([float(v.passed) for v in verdicts])


class ClassAccuracy(Metric):
    """1 if the object that a caption would name first, the left or upper one, is of the class."""

    unit = "class correct"

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        kinds = [_first_kind(reading) for reading in read_scenes(images)]
        return torch.tensor([float(k == int(c)) for k, c in zip(kinds, batch["label"], strict=True)])


class BoxAccuracy(Metric):
    """1 if each box holds an object of its label with an IoU above 0.5, and there is no other object."""

    unit = "all boxes correct"

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        pairs = zip(read_scenes(images), batch["boxes"], strict=True)
        return torch.tensor([float(_boxes_match(reading, boxes)) for reading, boxes in pairs])


class IsScene(Metric):
    """1 if the image is a valid scene: a known background and one or two complete objects."""

    unit = "valid scene"

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        return torch.tensor([float(_is_scene(reading)) for reading in read_scenes(images)])


class MapIoU(Metric):
    """Mean IoU, over colours, of the semantic map and the colours of the image's pixels.

    The map's labels are 0 and 1 + kind, as in the demo's `seg.png`; a colour has three kinds, its shapes.
    """

    unit, is_proportion = "mean IoU", False

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        labels = (batch["segmentation"].long() + len(SHAPES) - 1) // len(SHAPES)  # 0, or 1 + colour
        return mean_iou(colour_map(images), labels, 1 + len(COLOURS))


class DepthIoU(Metric):
    """Mean IoU, over background, far and near, of the depth map and the sizes of the image's objects.

    Depth is -1, 0 and 1 for background, small and large objects, as in the demo's `depth.png`. The colours
    and shapes of the objects do not matter.
    """

    unit, is_proportion = "mean IoU", False

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        depths = (batch["depth"][:, 0] > -0.5).long() + (batch["depth"][:, 0] > 0.5)
        return mean_iou(size_map(colour_map(images) > 0), depths, 3)


class EdgeMatch(Metric):
    """Proportion of edge pixels, of condition and image, within a pixel of an edge of the other."""

    unit, is_proportion = "edges matched", False

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        pixels = ((images.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        actual = torch.stack([edge_map(image) for image in pixels]) > EDGE_THRESHOLD
        target = batch["edges"] > EDGE_THRESHOLD
        near_actual, near_target = (max_pool2d(m.float(), 3, 1, 1) > 0 for m in (actual, target))
        matched = (actual & near_target).sum((1, 2, 3)) + (target & near_actual).sum((1, 2, 3))
        return matched / (actual.sum((1, 2, 3)) + target.sum((1, 2, 3))).clamp(min=1)


class MaskedError(Metric):
    """Mean absolute error of the pixels under the mask, on a scale of 0..255."""

    unit, lower_is_better, is_proportion = "masked error, of 255", True, False

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        mask = (batch["mask"] > 127).float()
        error = (images - _original_images(batch)).abs().mean(1, keepdim=True) * 127.5
        return (error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)

    def prepare(self, images: Image, batch: Batch) -> Image:
        """Restore the original pixels outside the mask, as inpainting does."""
        return torch.where(batch["mask"] > 127, images, _original_images(batch))


class PSNR(Metric):
    """Peak signal-to-noise ratio, 10 log10 (peak² / MSE), in dB."""

    unit, is_proportion = "PSNR, dB", False

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        error = ((images - _original_images(batch)) / 2).square().mean((1, 2, 3))
        return -10 * error.clamp(min=1e-10).log10()

    def baselines(self, batch: Batch) -> dict[str, Image]:
        """Return the bicubically enlarged low-resolution images."""
        small, size = batch["small"].float() / 127.5 - 1, batch["image"].shape[-2:]
        return {"bicubic": interpolate(small, size, mode="bicubic").clamp(-1, 1)}


def colour_map(images: Image) -> Int64[Tensor, "b h w"]:
    """Return 0 for pixels nearest to a background's colour, otherwise 1 + the index of the nearest colour."""
    palette = torch.tensor([*BACKGROUNDS.values(), *COLOURS.values()]).float()
    rgb = (images.float().cpu() + 1) * 127.5
    distance = (rgb[:, None] - palette[:, :, None, None]).square().sum(2)
    return (distance.argmin(1) - len(BACKGROUNDS) + 1).clamp(min=0)


def mean_iou(a: Int64[Tensor, "b h w"], b: Int64[Tensor, "b h w"], num_labels: int) -> Float[Tensor, " b"]:
    """Return the IoU, averaged over the labels that occur in either map."""
    intersections, unions = [], []
    for label in range(num_labels):
        x, y = a == label, b == label
        intersections.append((x & y).sum((1, 2)))
        unions.append((x | y).sum((1, 2)))
    union = torch.stack(unions, 1)
    iou = torch.stack(intersections, 1) / union.clamp(min=1)
    return iou.sum(1) / (union > 0).sum(1)


def _original_images(batch: Batch) -> Image:
    image: UInt8[Tensor, "b 3 h w"] = batch["image"]
    return image.float() / 127.5 - 1


def _is_scene(reading: SceneReading) -> bool:
    return (
        reading.background is not None
        and reading.objects is not None
        and all(_kind(thing) is not None for thing in reading.objects)
    )


def _kind(thing: DetectedObject) -> int | None:
    name = f"{thing.colour} {thing.shape}"
    return KINDS.index(name) if name in KINDS else None


def _first_kind(reading: SceneReading) -> int | None:
    """Return the kind of the left object if two lie side by side, otherwise of the upper one."""
    things = reading.objects
    if not things:
        return None
    if len(things) == 2:
        a, b = things
        side_by_side = abs(a.x - b.x) > abs(a.y - b.y)
        things = tuple(sorted(things, key=lambda thing: thing.x if side_by_side else thing.y))
    return _kind(things[0])


def _boxes_match(reading: SceneReading, boxes: Float[Tensor, "n 5"]) -> bool:
    targets = [box.tolist() for box in boxes if box[0] >= 0]
    things = reading.objects
    if things is None or len(things) != len(targets):
        return False
    return any(
        all(_in_box(thing, box) for thing, box in zip(order, targets, strict=True))
        for order in (things, things[::-1])
    )


def _in_box(thing: DetectedObject, box: Sequence[float]) -> bool:
    label, left, top, right, bottom = box
    half = thing.across / 2
    own = [c / CANVAS for c in (thing.x - half, thing.y - half, thing.x + half, thing.y + half)]
    width = max(0.0, min(own[2], right) - max(own[0], left))
    height = max(0.0, min(own[3], bottom) - max(own[1], top))
    intersection = width * height
    areas = (own[2] - own[0]) * (own[3] - own[1]) + (right - left) * (bottom - top)
    return _kind(thing) == int(label) and intersection > 0.5 * (areas - intersection)
