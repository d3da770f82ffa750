"""What lies on a image, read with the image's own crop and flip: maps, boxes, sizes."""

import math
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from jaxtyping import Float, Num, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.data.fields.decode import ORIENTATION
from ldm.data.fields.image import ImageField, cut
from ldm.data.fields.metadata import read_json
from ldm.data.fields.multichannel import array_size, is_array
from ldm.data.shards.reader import BadSample, Sample
from ldm.data.shards.tar import IMAGES


@dataclass
class SegmentationField:
    """Reads `seg.png`, the label of each pixel, 0..255: an 8-bit grey or palette image."""

    images: ImageField
    batch_key = "segmentation"
    kind = "seg.png"

    def __call__(self, sample: Sample, position: int) -> UInt8[Tensor, "h w"]:
        labels = _plane(sample, self.kind, ("L", "P", "1"))
        return spatial_fields(self.images, labels, position, "nearest-exact")[0]


@dataclass
class MaskField:
    """Reads `mask.png`: 255 where the image is to be drawn anew, 0 where it stays."""

    images: ImageField
    batch_key = "mask"
    kind = "mask.png"

    def __call__(self, sample: Sample, position: int) -> UInt8[Tensor, "1 h w"]:
        white = _plane(sample, self.kind, ("L", "1")) > 127
        return spatial_fields(self.images, white.to(torch.uint8) * 255, position, "nearest-exact")


@dataclass
class DepthField:
    """Reads `depth.png`, 8 or 16 bits, white is near: [-1, 1]."""

    images: ImageField
    batch_key = "depth"
    kind = "depth.png"

    def __call__(self, sample: Sample, position: int) -> Float[Tensor, "1 h w"]:
        found = _plane(sample, self.kind, ("L", "I;16", "I", "I;16B"))
        depth = found.float() / (255 if found.dtype == torch.uint8 else 65535)
        return 2 * spatial_fields(self.images, depth, position, "bilinear") - 1


@dataclass
class BoxField:
    """Reads the json's `boxes`, a list of [label, left, top, right, bottom] in [0, 1] of the whole image.

    They become boxes of the crop; one of which less than `least` is left is no box any more. The first
    `count` are kept, and -1 stands for the label of those that are lacking.

    Args:
        num_labels: labels are 0..num_labels-1, as the condition has them.
    """

    images: ImageField
    count: int
    num_labels: int
    least: float = 0.25
    batch_key = "boxes"

    def __call__(self, sample: Sample, position: int) -> Float[Tensor, "n 5"]:
        listed = read_json(sample).get("boxes", [])
        try:
            boxes = torch.tensor(listed, dtype=torch.float32).reshape(-1, 5)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadSample(
                f"the boxes of sample {sample.key} in {sample.shard} are no list of "
                "[label, left, top, right, bottom]: mend its json"
            ) from error
        most = self.num_labels - 1
        if wrong := [n for n in boxes[:, 0].tolist() if not (n.is_integer() and 0 <= n <= most)]:
            raise BadSample(
                f"a box of sample {sample.key} in {sample.shard} has the label {wrong[0]:g}: it takes a "
                f"whole number from 0 to {most}"
            )
        boxes = self.cropped(boxes, image_size(sample), position)[: self.count]
        none = torch.tensor([-1.0, 0, 0, 0, 0]).expand(self.count - len(boxes), 5)
        return torch.cat([boxes, none])

    def cropped(
        self, boxes: Float[Tensor, "n 5"], size: tuple[int, int], position: int
    ) -> Float[Tensor, "m 5"]:
        """Boxes of a image of `size` (height, width) as boxes of its crop."""
        crop, (height, width) = self.images.crop(size, position), self.images.shape
        whole = torch.tensor([crop.resized[1], crop.resized[0]]).repeat(2)
        corner = torch.tensor([crop.left, crop.top]).repeat(2)
        found = (boxes[:, 1:] * whole - corner) / torch.tensor([width, height]).repeat(2)
        inside = found.clamp(0, 1)
        if crop.flip:
            inside = torch.stack([1 - inside[:, 2], inside[:, 1], 1 - inside[:, 0], inside[:, 3]], 1)
        kept = _area(inside) >= self.least * _area(found).clamp(min=1e-12)
        return torch.cat([boxes[:, :1], inside], 1)[kept]


@dataclass
class SizeField:
    """Height and width as stored, the crop's top and left, height and width drawn (Podell et al. 2023, 2.2).

    Sizes as stored are the json's `original_height` and `original_width` where it has them.
    """

    images: ImageField
    batch_key = "sizes"

    def __call__(self, sample: Sample, position: int) -> Float[Tensor, "6"]:
        size, known = image_size(sample), read_json(sample)
        stored = [known.get(f"original_{side}", n) for side, n in zip(("height", "width"), size, strict=True)]
        crop = self.images.crop(size, position)
        return torch.tensor([*stored, crop.top, crop.left, *self.images.shape], dtype=torch.float32)


def spatial_fields(
    images: ImageField, plane: Num[Tensor, "h w"], position: int, mode: str
) -> Num[Tensor, "1 h2 w2"]:
    """A map of a image's size with the image's crop and flip."""
    crop = images.crop((plane.shape[0], plane.shape[1]), position)
    resized = plane[None]
    if crop.resized != tuple(plane.shape):
        smooth = {"antialias": True, "align_corners": False} if mode == "bilinear" else {}
        resized = interpolate(plane[None, None], crop.resized, mode=mode, **smooth)[0]
    return cut(resized, crop, images.shape)


def image_size(sample: Sample) -> tuple[int, int]:
    """(height, width) of a sample's image, upright; of latents', as its json has it."""
    kind = next((kind for kind in IMAGES if kind in sample.members), None)
    if kind is None:
        known = read_json(sample)
        height, width = known.get("height"), known.get("width")
        if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
            raise BadSample(
                f"sample {sample.key} in {sample.shard} has no image, and its json no height and width: "
                "encode the shard again"
            )
        return height, width
    try:
        data = sample.read(kind)
        if is_array(data):
            return array_size(data)
        image = Image.open(BytesIO(data))
        # above 4 the camera lay on its side
        turned = image.format == "JPEG" and image.getexif().get(ORIENTATION, 1) > 4
    except Exception as error:  # decoders of foreign bytes raise whatever they like
        raise BadSample(f"the image of sample {sample.key} in {sample.shard} cannot be read") from error
    return (image.width, image.height) if turned else (image.height, image.width)


def _plane(sample: Sample, kind: str, modes: tuple[str, ...]) -> Num[Tensor, "h w"]:
    """A map's numbers; BadSample unless it is of one of the modes and of the image's size."""
    where = f"the {kind} of sample {sample.key} in {sample.shard}"
    try:
        image = Image.open(BytesIO(sample.read(kind)))
        image.load()
    except BadSample:
        raise
    except Exception as error:  # as above
        raise BadSample(f"{where} cannot be read ({error}): pack this shard again") from error
    if image.mode not in modes:
        raise BadSample(f"{where} is of mode {image.mode}: it takes one number a pixel, {' or '.join(modes)}")
    height, width = image_size(sample)
    # a cached latent's json may tell of a larger original: there, and for a hair's breadth, the shape decides
    if not math.isclose(image.width * height, image.height * width, rel_tol=0.02):
        raise BadSample(
            f"{where} is {image.width}x{image.height} and the image {width}x{height}: give them one size"
        )
    array = np.asarray(image.convert("L") if image.mode == "1" else image)
    return torch.from_numpy(array.astype(np.uint8 if array.dtype == np.uint8 else np.float32))


def _area(boxes: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    return sides[:, 0] * sides[:, 1]
