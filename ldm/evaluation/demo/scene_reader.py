"""Read demo scenes from their pixels, without their captions.

The background is the palette colour of the border. Objects are the connected regions of anything else:
each must have one palette colour throughout and overlap with an ideal shape of equal area and centroid.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64, UInt8
from PIL import Image as PIL
from torch import Tensor
from torch.nn.functional import max_pool2d

from ldm.data.demo.scenes import BACKGROUNDS, CANVAS, COLOURS, SHAPES, SIZES
from ldm.errors import InvalidValue
from ldm.typing import Image

PALETTE = (*BACKGROUNDS, *COLOURS)
MIN_BORDER_PROPORTION = 0.9
"""Smallest proportion of the border, two pixels wide, that is nearest to the background's colour."""
MIN_AREA = 16
"""Smallest area of an object or a stray mark, in pixels of an image 64 wide."""
MIN_STRAY_CONTRAST = 48.0
"""RGB distance from the background above which a pixel far from all objects is a stray mark."""
MAX_COLOUR_DISTANCE = 60.0
"""Largest RGB distance of an object's mean colour from its palette colour: half that of the closest pair."""
MIN_COLOUR_PROPORTION = 0.95
"""Smallest proportion of an object's inner pixels that are nearest to its colour."""
MIN_IOU = 0.85
"""Smallest IoU with the ideal shape; that of a square and a circle of the same area and centre is 0.83."""
MAX_EDGE_WIDTH = 2.7
"""Largest width, in pixels, over which coverage rises from 1/4 to 3/4: about 1.35 sigma of a blur."""
SMALL_BELOW = math.sqrt(SIZES["small"] * SIZES["large"])
"""Side length below which an object is small."""
FILL = {"circle": math.pi / 4, "square": 1.0, "triangle": 0.5}
"""Area of each shape, of its bounding square's."""
OUTLINE = {"circle": math.pi, "square": 4.0, "triangle": 1 + math.sqrt(5)}
"""Perimeter of each shape over the side length of its bounding square."""


@dataclass(frozen=True)
class DetectedObject:
    """An object of an image; colour and shape are None if unclear. Lengths are as in a Place."""

    colour: str | None
    shape: str | None
    x: float
    y: float
    across: float

    @property
    def size(self) -> str:
        return "small" if self.across < SMALL_BELOW else "large"


@dataclass(frozen=True)
class SceneReading:
    """The scene of an image; `objects` is None if there are none, more than two, or stray marks."""

    background: str | None
    objects: tuple[DetectedObject, ...] | None


def stack_images(images: Iterable[PIL.Image]) -> UInt8[Tensor, "b 3 h w"]:
    """Stack Pillow images into one tensor, 0..255."""
    arrays = [np.array(image.convert("RGB")) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def read_scenes(images: UInt8[Tensor, "b 3 h w"] | Image) -> list[SceneReading]:
    """Return the scene of each image; images are uint8 0..255 or float [-1, 1], square, at least 64 wide."""
    if images.shape[-1] != images.shape[-2] or images.shape[-1] < CANVAS:
        raise InvalidValue(
            f"images are {tuple(images.shape[-2:])}, but scenes are read from squares of >= {CANVAS} pixels"
        )
    return [reading for part in images.cpu().split(256) for reading in _read_batch(_rgb(part))]


def size_map(objects: Bool[Tensor, "b h w"]) -> Int64[Tensor, "b h w"]:
    """Return 1 for pixels of small objects, 2 for large ones, 0 for no object or one too small."""
    scale = objects.shape[-1] / CANVAS
    result = torch.zeros(objects.shape, dtype=torch.long)
    for labels, own in zip(_components(objects), result, strict=True):  # per image: noise has many regions
        regions, areas = labels[labels > 0].unique(return_counts=True)
        masks = labels == regions[areas >= MIN_AREA * scale**2, None, None]
        _, squares = _shapes(masks.float(), torch.zeros(len(masks)))
        own[masks.any(0)] = 1
        own[masks[squares[:, 2] >= SMALL_BELOW * scale].any(0)] = 2
    return result


def _rgb(images: Tensor) -> Float[Tensor, "b 3 h w"]:
    if images.dtype == torch.uint8:
        return images.float()
    return (images.float().clamp(-1, 1) + 1) * 127.5


def _palette() -> Float[Tensor, "p 3"]:
    return torch.tensor([{**BACKGROUNDS, **COLOURS}[name] for name in PALETTE]).float()


def _nearest(rgb: Float[Tensor, "b 3 h w"]) -> Int64[Tensor, "b h w"]:
    palette = _palette()
    # |p - c|^2 without |p|^2, which is the same for all colours
    return (torch.einsum("bchw,pc->bphw", rgb, 2 * palette) - palette.square().sum(1)[:, None, None]).argmax(
        1
    )


def _dilate(mask: Float[Tensor, "b h w"], radius: int = 1) -> Float[Tensor, "b h w"]:
    return max_pool2d(mask[:, None], 2 * radius + 1, 1, radius)[:, 0]


def _erode(mask: Float[Tensor, "b h w"], radius: int) -> Float[Tensor, "b h w"]:
    return -_dilate(-mask, radius)


def _components(mask: Bool[Tensor, "b h w"]) -> Int64[Tensor, "b h w"]:
    """Label connected regions (8 neighbours) by the number, from 1, of their last pixel; the rest is 0."""
    h, w = mask.shape[1:]
    inside = mask.int()
    labels = inside * torch.arange(1, h * w + 1, dtype=torch.int32).view(h, w)
    while True:
        spread = _neighbour_maximum(_neighbour_maximum(labels, 1), 2) * inside
        if torch.equal(spread, labels):
            return labels.long()
        labels = spread


def _neighbour_maximum(labels: Int32[Tensor, "b h w"], axis: int) -> Int32[Tensor, "b h w"]:
    """Return each pixel's maximum with its two neighbours along `axis`; many times faster than pooling."""
    spread, last = labels.clone(), labels.shape[axis] - 1
    for here, there in ((1, 0), (0, 1)):
        part = spread.narrow(axis, here, last)
        torch.maximum(part, labels.narrow(axis, there, last), out=part)
    return spread


def _backgrounds(nearest: Int64[Tensor, "b h w"]) -> tuple[Int64[Tensor, " b"], list[str | None]]:
    """Return the border's most common palette index, and its name if it is a background and common enough."""
    inner = torch.zeros(nearest.shape[1:], dtype=torch.bool)
    inner[2:-2, 2:-2] = True
    border = nearest[:, ~inner]
    votes = torch.stack([(border == i).float().mean(1) for i in range(len(PALETTE))], 1)
    proportion, index = votes.max(1)
    clear = (index < len(BACKGROUNDS)) & (proportion >= MIN_BORDER_PROPORTION)
    return index, [PALETTE[i] if ok else None for i, ok in zip(index.tolist(), clear.tolist(), strict=True)]


def _read_batch(rgb: Float[Tensor, "b 3 h w"]) -> list[SceneReading]:
    scale = rgb.shape[-1] / CANVAS
    nearest = _nearest(rgb)
    index, names = _backgrounds(nearest)
    ground = _palette()[index]
    labels = _components(nearest != index[:, None, None])
    regions = [
        values[(counts >= MIN_AREA * scale**2) & (values > 0)]
        for values, counts in (image.unique(return_counts=True) for image in labels)
    ]
    owner = [i for i, values in enumerate(regions) if len(values) in (1, 2) for _ in values]
    if not owner:
        return [SceneReading(name, None) for name in names]
    kept_regions = torch.cat([values for values in regions if len(values) in (1, 2)])
    masks = (labels[owner] == kept_regions[:, None, None]).float()
    stray = _has_stray_marks(rgb, ground, masks, owner, scale)
    objects: list[list[DetectedObject]] = [[] for _ in names]
    for i, thing in zip(owner, _objects(rgb[owner], ground[owner], masks), strict=True):
        objects[i].append(thing)
    return [
        SceneReading(name, tuple(things) if things and not has_marks else None)
        for name, things, has_marks in zip(names, objects, stray, strict=True)
    ]


def _has_stray_marks(
    rgb: Float[Tensor, "b 3 h w"],
    ground: Float[Tensor, "b 3"],
    masks: Float[Tensor, "k h w"],
    owner: Sequence[int],
    scale: float,
) -> list[bool]:
    """Return per image whether anything faint, or a piece of an object, is far from all objects."""
    near = torch.zeros(rgb.shape[0], *rgb.shape[2:]).index_add_(0, torch.tensor(owner), masks)
    faint = (rgb - ground[..., None, None]).square().sum(1) > MIN_STRAY_CONTRAST**2
    marks = faint & (_dilate(near.clamp(max=1), math.ceil(3 * scale)) == 0)
    return (marks.sum((1, 2)) >= MIN_AREA * scale**2).tolist()


def _objects(
    rgb: Float[Tensor, "k 3 h w"], ground: Float[Tensor, "k 3"], masks: Float[Tensor, "k h w"]
) -> list[DetectedObject]:
    colour, names = _colours(rgb, masks)
    step = (colour - ground)[..., None, None]
    coverage = ((rgb - ground[..., None, None]) * step).sum(1) / step.square().sum(1).clamp(min=1)
    scale = rgb.shape[-1] / CANVAS
    silhouettes = ((coverage > 0.5) & (_dilate(masks) > 0)).float()
    edges = (coverage > 0.25) & (coverage < 0.75) & (_dilate(masks, math.ceil(2 * scale)) > 0)
    shapes, squares = _shapes(silhouettes, edges.sum((1, 2)) / scale)
    return [
        DetectedObject(name, shape, *(length / scale for length in square))
        for name, shape, square in zip(names, shapes, squares.tolist(), strict=True)
    ]


def _colours(
    rgb: Float[Tensor, "k 3 h w"], masks: Float[Tensor, "k h w"]
) -> tuple[Float[Tensor, "k 3"], list[str | None]]:
    """Return the mean inner colour, and its name if the object has that colour throughout."""
    core = _erode(masks, 2)
    core = torch.where(core.sum((1, 2), keepdim=True) > 0, core, masks)
    area = core.sum((1, 2))
    mean = (rgb * core[:, None]).sum((2, 3)) / area[:, None]
    distance, index = torch.cdist(mean, _palette()).min(1)
    proportion = ((_nearest(rgb) == index[:, None, None]) * core).sum((1, 2)) / area
    pure = (distance <= MAX_COLOUR_DISTANCE) & (proportion >= MIN_COLOUR_PROPORTION)
    clear = pure & (index >= len(BACKGROUNDS))
    return mean, [PALETTE[i] if ok else None for i, ok in zip(index.tolist(), clear.tolist(), strict=True)]


def _shapes(
    silhouettes: Float[Tensor, "k h w"], edges: Float[Tensor, " k"]
) -> tuple[list[str | None], Float[Tensor, "k 3"]]:
    """Return the name, x, y and side length of the best-fitting ideal shape of equal area and centroid.

    `edges` is the area of the partly covered pixels of the outline: too wide an outline is no clear shape.
    """
    area = silhouettes.sum((1, 2)).clamp(min=1)
    fits = [_fit(shape, silhouettes, area) for shape in SHAPES]
    iou, best = torch.stack([overlap for overlap, _ in fits], 1).max(1)
    squares = torch.stack([square for _, square in fits], 1)[torch.arange(len(best)), best]
    outline = squares[:, 2] * torch.tensor([OUTLINE[shape] for shape in SHAPES])[best]
    clear = (iou >= MIN_IOU) & (edges <= MAX_EDGE_WIDTH * outline)
    return [SHAPES[i] if ok else None for i, ok in zip(best.tolist(), clear.tolist(), strict=True)], squares


def _fit(
    shape: str, silhouettes: Float[Tensor, "k h w"], area: Float[Tensor, " k"]
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k 3"]]:
    """Return the IoU with the ideal shape of equal area and centroid, and its x, y and side length."""
    h, w = silhouettes.shape[1:]
    y, x = torch.arange(h)[:, None] + 0.5, torch.arange(w)[None, :] + 0.5
    across = (area / FILL[shape]).sqrt()
    middle_x, middle_y = ((silhouettes * axis).sum((1, 2)) / area for axis in (x, y))
    if shape == "triangle":
        middle_y = middle_y - across / 6  # its centroid lies below the middle of its box
    u, v = ((a - m[:, None, None]) / across[:, None, None] for a, m in ((x, middle_x), (y, middle_y)))
    ideal = _inside(shape, u, v).float()
    union = torch.maximum(ideal, silhouettes).sum((1, 2)).clamp(min=1)
    return (ideal * silhouettes).sum((1, 2)) / union, torch.stack([middle_x, middle_y, across], 1)


def _inside(shape: str, u: Float[Tensor, "k 1 w"], v: Float[Tensor, "k h 1"]) -> Bool[Tensor, "k h w"]:
    """Return whether points of the box [-1/2, 1/2]^2 belong to the shape that fills it."""
    if shape == "circle":
        return u.square() + v.square() <= 0.25
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) <= 0.5
    return (2 * u.abs() <= v + 0.5) & (v <= 0.5)
