"""Per-pixel maps, boxes and sizes, cropped and flipped with their image."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Num, Shaped, UInt8
from torch import Tensor

from ldm.data.fields.decode import report_unreadable, upright_size
from ldm.data.fields.image import ImageField
from ldm.data.fields.maps import decode_grey_map, decode_labels, decode_mask
from ldm.data.fields.metadata import read_json
from ldm.data.fields.multichannel import array_size, is_array
from ldm.data.fields.resize import Interpolation, resize_and_crop
from ldm.data.fields.unreadable import Unreadable, UnsuitableMap
from ldm.data.shards.metadata import read_number
from ldm.data.shards.reader import BadSample, Sample
from ldm.data.shards.tar import IMAGES
from ldm.typing import Channels, Proportion


@dataclass
class SegmentationField:
    """Read `seg.png`, the label of each pixel, 0..255: a grey or palette PNG."""

    image_field: ImageField
    batch_key = "segmentation"
    kind = "seg.png"

    def __call__(self, sample: Sample, position: int) -> UInt8[Tensor, "h w"]:
        labels = _read_map(sample, self.kind, decode_labels)
        return crop_map(self.image_field, labels, position, "nearest-exact")[0]


@dataclass
class MaskField:
    """Read `mask.png`: 255 where it is white and the image is to be generated, 0 where it is kept.

    Transparent pixels are kept.
    """

    image_field: ImageField
    batch_key = "mask"
    kind = "mask.png"

    def __call__(self, sample: Sample, position: int) -> UInt8[Tensor, "1 h w"]:
        white = _read_map(sample, self.kind, decode_mask) >= 0.5
        return crop_map(self.image_field, white.to(torch.uint8) * 255, position, "nearest-exact")


@dataclass
class DepthField:
    """Read `depth.png`, grey of any depth, white is near, scaled to [-1, 1]."""

    image_field: ImageField
    batch_key = "depth"
    kind = "depth.png"

    def __call__(self, sample: Sample, position: int) -> Float[Tensor, "1 h w"]:
        depth = _read_map(sample, self.kind, decode_grey_map)
        return 2 * crop_map(self.image_field, depth, position, "bilinear") - 1


EDGE_TOLERANCE = 1e-3
"""By how much rounded coordinates of a box may exceed the image, as a share of its side."""


@dataclass
class BoxField:
    """Read the json's `boxes`, a list of [label, left, top, right, bottom] in [0, 1] of the whole image.

    They become boxes of the crop, padded with label -1. A box of which less than `min_visible` of the area
    remains is removed; the first `count` are kept.

    Args:
        num_labels: labels are 0..num_labels-1, as in the conditioner.
    """

    image_field: ImageField
    count: Channels
    num_labels: Channels
    min_visible: Proportion = 0.25
    batch_key = "boxes"

    def __call__(self, sample: Sample, position: int) -> Float[Tensor, "n 5"]:
        boxes = self._read_boxes(sample)
        boxes = self.crop_boxes(boxes, image_size(sample), position)[: self.count]
        padding = torch.tensor([-1.0, 0, 0, 0, 0]).expand(self.count - len(boxes), 5)
        return torch.cat([boxes, padding])

    def _read_boxes(self, sample: Sample) -> Float[Tensor, "n 5"]:
        try:
            boxes = torch.tensor(read_json(sample).get("boxes") or [], dtype=torch.float32).reshape(-1, 5)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadSample(
                f"the boxes of sample {sample.key} in {sample.shard} are not a list of "
                "[label, left, top, right, bottom]: fix its json"
            ) from error
        last = self.num_labels - 1
        if invalid := [n for n in boxes[:, 0].tolist() if not (n.is_integer() and 0 <= n <= last)]:
            raise BadSample(
                f"a box of sample {sample.key} in {sample.shard} has label {invalid[0]:g}, not a whole "
                f"number from 0 to {last}: fix its json"
            )
        corners = boxes[:, 1:].double()
        is_inside = ((corners >= -EDGE_TOLERANCE) & (corners <= 1 + EDGE_TOLERANCE)).all(1)  # NaN is not
        if not (is_inside & (corners[:, :2] <= corners[:, 2:]).all(1)).all():
            raise BadSample(
                f"the boxes of sample {sample.key} in {sample.shard} are not [label, left, top, right, "
                "bottom] with 0 <= left <= right <= 1 and 0 <= top <= bottom <= 1, as shares of the image's "
                "width and height: fix its json"
            )
        return boxes

    def crop_boxes(
        self, boxes: Float[Tensor, "n 5"], size: tuple[int, int], position: int
    ) -> Float[Tensor, "m 5"]:
        """Convert boxes of an image of `size` (height, width) to boxes of its crop."""
        crop, (height, width) = self.image_field.crop(size, position), self.image_field.shape
        resized = torch.tensor([crop.resized[1], crop.resized[0]]).repeat(2)
        corner = torch.tensor([crop.left, crop.top]).repeat(2)
        shifted = (boxes[:, 1:] * resized - corner) / torch.tensor([width, height]).repeat(2)
        clipped = shifted.clamp(0, 1)
        if crop.flip:
            clipped = torch.stack([1 - clipped[:, 2], clipped[:, 1], 1 - clipped[:, 0], clipped[:, 3]], 1)
        is_visible = _area(clipped) >= self.min_visible * _area(shifted).clamp(min=1e-12)
        return torch.cat([boxes[:, :1], clipped], 1)[is_visible]


@dataclass
class SizeField:
    """Original height and width, top and left of the crop, its height and width (Podell et al. 2023, 2.2).

    The original size is the json's `original_height` and `original_width`; where one of them is missing or is
    no number above 0, it is that of the stored image.
    """

    image_field: ImageField
    batch_key = "sizes"

    def __call__(self, sample: Sample, position: int) -> Float[Tensor, "6"]:
        (height, width), metadata = image_size(sample), read_json(sample)
        original = [
            max(read_number(metadata, "original_height") or 0, 0) or height,
            max(read_number(metadata, "original_width") or 0, 0) or width,
        ]
        crop = self.image_field.crop((height, width), position)
        return torch.tensor([*original, crop.top, crop.left, *self.image_field.shape], dtype=torch.float32)


def crop_map(
    image_field: ImageField, values: Num[Tensor, "h w"], position: int, interpolation: Interpolation
) -> Num[Tensor, "1 h2 w2"]:
    """Resize, crop and flip a map of the image's size as `image_field` does the image."""
    crop = image_field.crop((values.shape[0], values.shape[1]), position)
    return resize_and_crop(values[None], crop, interpolation)


def image_size(sample: Sample) -> tuple[int, int]:
    """Return (height, width) of a sample's upright image; for cached latents, from their json."""
    kind = next((kind for kind in IMAGES if kind in sample.members), None)
    if kind is None:
        metadata = read_json(sample)
        height, width = metadata.get("height"), metadata.get("width")
        if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
            raise BadSample(
                f"sample {sample.key} in {sample.shard} has no image, nor a height and width in its json: "
                "encode the shard again"
            )
        return height, width
    data = sample.read(kind)
    try:
        with report_unreadable():
            return array_size(data) if is_array(data) else upright_size(data)
    except Unreadable as error:
        raise BadSample(
            f"the image of sample {sample.key} in {sample.shard} cannot be read ({error}): pack this "
            "shard again"
        ) from error


def _read_map(
    sample: Sample, kind: str, decode: Callable[[bytes], Shaped[np.ndarray, "h w"]]
) -> Num[Tensor, "h w"]:
    """Read a map that has the aspect ratio of its image; raise BadSample for any other."""
    name = f"the {kind} of sample {sample.key} in {sample.shard}"
    try:
        values = decode(sample.read(kind))
    except UnsuitableMap as error:
        raise BadSample(f"{name} {error}") from error
    except Unreadable as error:
        raise BadSample(f"{name} cannot be read ({error}): pack this shard again") from error
    (map_height, map_width), (height, width) = values.shape, image_size(sample)
    # compare aspects, not sizes: the json of a cached latent may state a larger original, with rounded sides
    if not math.isclose(map_width * height, map_height * width, rel_tol=0.02):
        raise BadSample(
            f"{name} is {map_width}x{map_height} but the image is {width}x{height} once it is turned by its "
            "EXIF orientation: save both in one size"
        )
    return torch.from_numpy(values)


def _area(boxes: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    return sides[:, 0] * sides[:, 1]
