"""Whether a demo image is what it was conditioned on: one number a image."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from ldm.data.demo.drawing import BACKGROUNDS, CANVAS, COLOURS, SHAPES
from ldm.data.demo.maps import KINDS
from ldm.data.fields.degradations import edges
from ldm.evaluation.demo.alignment import check
from ldm.evaluation.demo.scene_reader import DetectedObject, SceneReading, read, sizes
from ldm.typing import Batch, Image

LEAST_EDGE = -0.8
"""Where an edge begins: a step of a tenth from black to white."""


class Metric(ABC):
    """Scores images in [-1, 1] by what a batch asked for: one number a image."""

    unit: str
    less = False
    """Whether less is better."""
    share = True
    """Whether the number is 0 or 1, so that its mean is a share and has Wilson's interval."""

    @abstractmethod
    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]: ...

    def prepare(self, images: Image, batch: Batch) -> Image:
        """What of the model's images a user gets."""
        return images

    def beside(self, batch: Batch) -> dict[str, Image]:
        """What is to be beaten: images that need no model, by name."""
        return {}


class CaptionAccuracy(Metric):
    """1 where the checker reads all of the caption: text to image, and variations of a image."""

    unit = "all right"

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        verdicts = [check(r, c) for r, c in zip(read(images), batch["caption"], strict=True)]
        return torch.tensor([float(v.passed) for v in verdicts])


class ClassAccuracy(Metric):
    """1 where the object that a caption would name first, the left or upper one, is of the class."""

    unit = "class right"

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        found = [_first_kind(reading) for reading in read(images)]
        return torch.tensor([float(k == int(c)) for k, c in zip(found, batch["label"], strict=True)])


class BoxAccuracy(Metric):
    """1 where each box holds an object of its label at an IoU above 0.5, and no object is left over."""

    unit = "all boxes right"

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        pairs = zip(read(images), batch["boxes"], strict=True)
        return torch.tensor([float(_fits(reading, boxes)) for reading, boxes in pairs])


class IsScene(Metric):
    """1 where the image is a scene at all: a known background, one or two whole objects."""

    unit = "legible"

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        return torch.tensor([float(_is_scene(reading)) for reading in read(images)])


class MapIoU(Metric):
    """Mean intersection over union, by colour, of the map and of what the image's pixels say.

    Labels are 0 and 1 + kind, as the demo's `seg.png`; a colour has three shapes, whose outline the map has.
    """

    unit, share = "mean IoU", False

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        wanted = (batch["segmentation"].long() + len(SHAPES) - 1) // len(SHAPES)  # 0, then 1 + the colour
        return mean_iou(colours(images), wanted, 1 + len(COLOURS))


class DepthIoU(Metric):
    """Mean intersection over union of background, far and near, in the map and in the image.

    Depth is -1, 0 and 1 of background, small and large objects, as the demo's `depth.png`; of a image it is
    told by the sizes that the checker reads, whatever their colours and shapes.
    """

    unit, share = "mean IoU", False

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        wanted = (batch["depth"][:, 0] > -0.5).long() + (batch["depth"][:, 0] > 0.5)
        return mean_iou(sizes(colours(images) > 0), wanted, 3)


class EdgeRecall(Metric):
    """The share of edges, of those asked for and those of the image, that the other has within a pixel."""

    unit, share = "edges met", False

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        bytes_ = ((images.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        found = torch.stack([edges(picture) for picture in bytes_]) > LEAST_EDGE
        wanted = batch["edges"] > LEAST_EDGE
        near = [max_pool2d(m.float(), 3, 1, 1) > 0 for m in (found, wanted)]
        met = (found & near[1]).sum((1, 2, 3)) + (wanted & near[0]).sum((1, 2, 3))
        return met / (found.sum((1, 2, 3)) + wanted.sum((1, 2, 3))).clamp(min=1)


class MaskedError(Metric):
    """Mean absolute error of 255, on the pixels under the mask alone."""

    unit, less, share = "error of 255 under the mask", True, False

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        mask = (batch["mask"] > 127).float()
        error = (images - _truth(batch)).abs().mean(1, keepdim=True) * 127.5
        return (error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)

    def prepare(self, images: Image, batch: Batch) -> Image:
        """The image with its own pixels where the mask is not: inpainting leaves them untouched."""
        return torch.where(batch["mask"] > 127, images, _truth(batch))


class PSNR(Metric):
    """10 log10 (peak² / mean squared error), in dB."""

    unit, share = "dB", False

    def __call__(self, images: Image, batch: Batch) -> Float[Tensor, " b"]:
        error = ((images - _truth(batch)) / 2).square().mean((1, 2, 3))
        return -10 * error.clamp(min=1e-10).log10()

    def beside(self, batch: Batch) -> dict[str, Image]:
        """The small image enlarged: what super-resolution must beat."""
        small, size = batch["small"].float() / 127.5 - 1, batch["image"].shape[-2:]
        return {"bicubic": interpolate(small, size, mode="bicubic").clamp(-1, 1)}


def colours(images: Image) -> Int64[Tensor, "b h w"]:
    """0 where a pixel is nearest to a background's colour, else 1 + the nearest colour's number."""
    palette = torch.tensor([*BACKGROUNDS.values(), *COLOURS.values()]).float()
    rgb = (images.float().cpu() + 1) * 127.5
    distance = (rgb[:, None] - palette[:, :, None, None]).square().sum(2)
    return (distance.argmin(1) - len(BACKGROUNDS) + 1).clamp(min=0)


def mean_iou(a: Int64[Tensor, "b h w"], b: Int64[Tensor, "b h w"], num_labels: int) -> Float[Tensor, " b"]:
    """The mean over labels that either of the two maps has."""
    both, either = [], []
    for label in range(num_labels):
        x, y = a == label, b == label
        both.append((x & y).sum((1, 2)))
        either.append((x | y).sum((1, 2)))
    union = torch.stack(either, 1)
    share = torch.stack(both, 1) / union.clamp(min=1)
    return share.sum(1) / (union > 0).sum(1)


def _truth(batch: Batch) -> Image:
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
    """The kind of the left object where two lie side by side, else of the upper one."""
    things = reading.objects
    if not things:
        return None
    if len(things) == 2:
        a, b = things
        across = abs(a.x - b.x) > abs(a.y - b.y)
        things = tuple(sorted(things, key=lambda thing: thing.x if across else thing.y))
    return _kind(things[0])


def _fits(reading: SceneReading, boxes: Float[Tensor, "n 5"]) -> bool:
    wanted = [box.tolist() for box in boxes if box[0] >= 0]
    things = reading.objects
    if things is None or len(things) != len(wanted):
        return False
    return any(
        all(_in_box(thing, box) for thing, box in zip(order, wanted, strict=True))
        for order in (things, things[::-1])
    )


def _in_box(thing: DetectedObject, box: Sequence[float]) -> bool:
    label, left, top, right, bottom = box
    half = thing.across / 2
    own = [c / CANVAS for c in (thing.x - half, thing.y - half, thing.x + half, thing.y + half)]
    width = max(0.0, min(own[2], right) - max(own[0], left))
    height = max(0.0, min(own[3], bottom) - max(own[1], top))
    both = width * height
    areas = (own[2] - own[0]) * (own[3] - own[1]) + (right - left) * (bottom - top)
    return _kind(thing) == int(label) and both > 0.5 * (areas - both)
