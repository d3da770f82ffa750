"""How well a picture does a job: one number, read from its pixels, against the batch it was drawn for.

Right or wrong where the checker of the demo scenes decides, else a mean overlap or a signal-to-noise ratio.
Every score is better when it is higher.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.data.demo.scenes import BACKGROUNDS, CANVAS, COLOURS, DEPTHS, Thing, number
from ldm.evaluation.alignment import check
from ldm.evaluation.scene_reader import Found, Reading, read
from ldm.typing import Batch, Image

Score: TypeAlias = Callable[[Image, Batch], Tensor]
"""(pictures in [-1, 1], what they were drawn for) -> one number or verdict a picture."""

UNREAD = 255
"""Label of a pixel whose picture or object is not clearly any."""


def class_right(pictures: Image, batch: Batch) -> Bool[Tensor, " b"]:
    """Whether the first-named object, the left or upper one, has the class's colour and shape."""
    wanted = batch["label"].tolist()
    return torch.tensor(
        [
            (first := first_named(reading)) is not None and class_of(first) == label
            for reading, label in zip(read(pictures), wanted, strict=True)
        ]
    )


def caption_right(pictures: Image, batch: Batch) -> Bool[Tensor, " b"]:
    """Whether background, shapes, colours and places are those of the caption."""
    return torch.tensor([check(r, c).passed for r, c in zip(read(pictures), batch["caption"], strict=True)])


def boxes_right(pictures: Image, batch: Batch, threshold: float = 0.5) -> Bool[Tensor, " b"]:
    """Whether each box holds an object of its label that overlaps it enough, and no object is more."""
    verdicts = []
    for reading, boxes in zip(read(pictures), batch["boxes"].tolist(), strict=True):
        wanted = [box for box in boxes if box[0] >= 0]
        found = reading.objects or ()
        matched = [any(_fills(thing, box, threshold) for thing in found) for box in wanted]
        verdicts.append(len(found) == len(wanted) and all(matched))
    return torch.tensor(verdicts)


def legible(pictures: Image, batch: Batch) -> Bool[Tensor, " b"]:
    """Whether a picture is a scene: a background, one or two objects of clear colour and shape."""
    return torch.tensor(
        [
            r.background is not None and bool(r.objects) and all(class_of(o) is not None for o in r.objects)
            for r in read(pictures)
        ]
    )


def map_iou(pictures: Image, batch: Batch) -> Float[Tensor, " b"]:
    """Mean over labels of the overlap of the map and the map read back."""
    return mean_iou(read_maps(pictures, _label), batch["segmentation"].long())


def depth_iou(pictures: Image, batch: Batch) -> Float[Tensor, " b"]:
    """Mean over the three depths of the overlap of the map and the map that the objects' sizes tell."""
    levels = torch.tensor([0, *DEPTHS.values()]).float() / 127.5 - 1
    wanted = (batch["depth"][:, 0, ..., None] - levels).abs().argmin(-1)  # b h w
    return mean_iou(read_maps(pictures, _depth), wanted)


def masked_psnr(pictures: Image, batch: Batch) -> Float[Tensor, " b"]:
    """-10 log10 of the mean squared error over the pixels under the mask, colours in [0, 1]."""
    errors, mask = _errors(pictures, batch), _mask(batch)
    mse = (errors.square().mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
    return -10 * mse.clamp(min=1e-10).log10()


def masked_agreement(pictures: Image, batch: Batch) -> Float[Tensor, " b"]:
    """1 minus the mean absolute error over the pixels under the mask, colours in [0, 1]."""
    errors, mask = _errors(pictures, batch), _mask(batch)
    return 1 - (errors.abs().mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def untouched(pictures: Image, batch: Batch) -> Bool[Tensor, " b"]:
    """Whether every byte outside the mask is as it was."""
    bytes_ = ((pictures + 1) * 127.5).round().byte()
    return ((bytes_ == batch["image"]) | (_mask(batch) > 0)).all(1).all(1).all(1)


def psnr(pictures: Image, batch: Batch) -> Float[Tensor, " b"]:
    """-10 log10 of the mean squared error, colours in [0, 1]."""
    return -10 * _errors(pictures, batch).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def bicubic(batch: Batch) -> Image:
    """The low-resolution pictures, enlarged."""
    size = batch["image"].shape[-2:]
    return interpolate(batch["small"].float() / 127.5 - 1, size, mode="bicubic").clamp(-1, 1)


def first_named(reading: Reading) -> Found | None:
    """The left of two objects side by side, the upper of two above each other, or the only one."""
    if not reading.objects:
        return None
    if len(reading.objects) == 1:
        return reading.objects[0]
    a, b = reading.objects
    across = abs(a.x - b.x) > abs(a.y - b.y)
    return min(a, b, key=lambda found: found.x if across else found.y)


def class_of(found: Found) -> int | None:
    """0..11 of a colour and a shape; None where either is not clear."""
    if found.colour is None or found.shape is None:
        return None
    return number(Thing(found.size, found.colour, found.shape))


def read_maps(pictures: Image, label: Callable[[Found], int]) -> Int64[Tensor, "b h w"]:
    """The label of each pixel: 0 the background, an object's where a pixel is rather of its colour."""
    readings = read(pictures)
    return torch.stack([_map(x, r, label) for x, r in zip(pictures.cpu(), readings, strict=True)])


def mean_iou(found: Int64[Tensor, "b h w"], wanted: Int64[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """mean_k |F_k and W_k| / |F_k or W_k| over the labels k of either map (Everingham et al. 2015)."""
    values = []
    for f, w in zip(found, wanted, strict=True):
        labels = [k for k in torch.cat([f.flatten(), w.flatten()]).unique().tolist() if k != UNREAD]
        overlaps = [((f == k) & (w == k)).sum() / ((f == k) | (w == k)).sum() for k in labels]
        values.append(torch.stack(overlaps).mean())
    return torch.stack(values)


def _map(x: Float[Tensor, "3 h w"], reading: Reading, label: Callable[[Found], int]) -> Int64[Tensor, "h w"]:
    height, width = x.shape[1:]
    if reading.background is None or reading.objects is None:
        return torch.full((height, width), UNREAD)
    rgb, scale = (x.float() + 1) * 127.5, width / CANVAS
    ys, xs = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    ground, made = _distance(rgb, BACKGROUNDS[reading.background]), torch.zeros(height, width).long()
    for thing in reading.objects:
        if thing.colour is None:
            return torch.full((height, width), UNREAD)
        reach = 0.75 * thing.across * scale  # a little beyond its corners
        near = torch.maximum((ys - thing.y * scale).abs(), (xs - thing.x * scale).abs()) <= reach
        made[near & (_distance(rgb, COLOURS[thing.colour]) < ground)] = label(thing)
    return made


def _distance(rgb: Float[Tensor, "3 h w"], colour: Sequence[int]) -> Float[Tensor, "h w"]:
    return (rgb - torch.tensor(colour)[:, None, None]).square().sum(0)


def _label(found: Found) -> int:
    number = class_of(found)
    return UNREAD if number is None else 1 + number


def _depth(found: Found) -> int:
    return 1 + list(DEPTHS).index(found.size)


def _fills(found: Found, box: Sequence[float], threshold: float) -> bool:
    label, left, top, right, bottom = box
    if class_of(found) != int(label):
        return False
    half = found.across / 2
    own = [c / CANVAS for c in (found.x - half, found.y - half, found.x + half, found.y + half)]
    wide, high = min(own[2], right) - max(own[0], left), min(own[3], bottom) - max(own[1], top)
    shared = max(wide, 0.0) * max(high, 0.0)
    union = (own[2] - own[0]) * (own[3] - own[1]) + (right - left) * (bottom - top) - shared
    return shared / union > threshold


def _errors(pictures: Image, batch: Batch) -> Float[Tensor, "b 3 h w"]:
    return (pictures.cpu() + 1) / 2 - batch["image"].float() / 255


def _mask(batch: Batch) -> Float[Tensor, "b 1 h w"]:
    return (batch["mask"] > 127).float()
