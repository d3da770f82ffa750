"""Maps, boxes and sizes share the image's crop and flip, and wrong ones are bad samples."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.fields.image import ImageField
from ldm.data.fields.metadata import ClassField, MetadataField
from ldm.data.fields.spatial import BoxField, DepthField, MaskField, SegmentationField, SizeField
from ldm.data.shards.reader import BadSample, Sample

BOXES = BoxField(ImageField(8, 0), 2, num_labels=12)


def png(array: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def ramp(width: int = 40, height: int = 24) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([x, y, 0 * x], -1)


def sample(**members: bytes) -> Sample:
    kinds = {"png": png(ramp()), **{name.replace("_", "."): data for name, data in members.items()}}
    return Sample(Path("0.tar"), "7", kinds)


@pytest.mark.parametrize("position", range(12))
def test_a_map_has_the_images_crop_and_flip(position: int) -> None:
    images = ImageField(24, seed=3, random_crop=True, flip=True)
    read = sample(seg_png=png(ramp()[..., 0]), depth_png=png(ramp()[..., 0]))
    x = images(read, position)[0]
    assert torch.equal(SegmentationField(images)(read, position), x)
    depth = DepthField(images)(read, position)
    assert torch.allclose((depth[0] + 1) / 2 * 255, x.float(), atol=1e-3)


def test_labels_are_never_mixed_when_a_map_is_reduced() -> None:
    labels = np.zeros((48, 80), np.uint8)
    labels[:, 40:] = 200
    read = sample(seg_png=png(labels), png=png(ramp(80, 48)))
    assert set(SegmentationField(ImageField(16, seed=0))(read, 0).unique().tolist()) == {0, 200}


def test_sixteen_bits_of_depth() -> None:
    read = sample(depth_png=png(np.linspace(1000, 30000, 24 * 40).reshape(24, 40).astype(np.uint16)))
    depth = DepthField(ImageField(24, seed=0))(read, 0)
    assert -1 < depth.min() < depth.max() < 0


def test_a_stored_mask_is_black_and_white() -> None:
    mask = MaskField(ImageField(24, seed=0))(sample(mask_png=png(ramp()[..., 0] * 6)), 0)
    assert set(mask.unique().tolist()) == {0, 255} and mask.shape == (1, 24, 24)


def test_boxes_follow_the_crop() -> None:
    images = ImageField(24, seed=0)  # the middle 24 of 40 columns: 8 to 32
    listed = [[2, 8 / 40, 0, 20 / 40, 0.5], [5, 0, 0, 9 / 40, 1]]
    found = BoxField(images, count=3, num_labels=12)(sample(json=json.dumps({"boxes": listed}).encode()), 0)
    assert torch.allclose(found[0], torch.tensor([2, 0, 0, 0.5, 0.5]), atol=1e-6)
    assert found[1:].tolist() == [[-1, 0, 0, 0, 0]] * 2  # of the second a ninth is left


def test_boxes_follow_the_flip() -> None:
    images = ImageField(24, seed=3, random_crop=True, flip=True)
    read = sample(json=json.dumps({"boxes": [[1, 0.4, 0.25, 0.5, 0.75]]}).encode())
    for position in range(12):
        x = images(read, position)[0]
        _, left, top, right, bottom = BoxField(images, 1, num_labels=12, least=0.0)(read, position)[
            0
        ].tolist()
        inside = (x >= 16) & (x < 20)  # columns of the image that the box covers
        columns = torch.nonzero(inside.any(0)).flatten()
        if len(columns):
            assert columns.min() == pytest.approx(left * 24) and columns.max() + 1 == pytest.approx(
                right * 24
            )
        assert (top, bottom) == (0.25, 0.75)


def test_sizes_tell_where_the_crop_lies() -> None:
    images = ImageField(24, seed=3, random_crop=True)
    lefts = set()
    for position in range(12):
        read = sample(json=b'{"original_height": 240, "original_width": 400}')
        height, width, top, left, *drawn = SizeField(images)(read, position).tolist()
        assert (height, width, top, drawn) == (240, 400, 0, [24, 24])
        assert images(read, position)[0, 0, 0] == left
        lefts.add(left)
    assert len(lefts) > 3


def test_a_class_and_a_score() -> None:
    assert ClassField(10)(sample(cls=b" 9\n"), 0) == 9
    assert MetadataField()(sample(json=b'{"aesthetic": 5.5}'), 0).tolist() == [5.5]
    assert MetadataField(missing=6.0)(sample(), 0).tolist() == [6.0]


@pytest.mark.parametrize(
    ("reader", "members", "message"),
    [
        (ClassField(10), {"cls": b"10"}, "it takes a number from 0 to 9"),
        (ClassField(10), {"cls": b"cat"}, "'cat'"),
        (ClassField(10), {}, "has no .cls"),
        (MetadataField(), {"json": b"{}"}, "no number 'aesthetic'"),
        (SegmentationField(ImageField(8, 0)), {"seg_png": png(ramp())}, "mode RGB"),
        (SegmentationField(ImageField(8, 0)), {"seg_png": png(ramp(30, 30)[..., 0])}, "give them one size"),
        (SegmentationField(ImageField(8, 0)), {"seg_png": b"no image"}, "cannot be read"),
        (SegmentationField(ImageField(8, 0)), {}, "has no .seg.png"),
        (BoxField(ImageField(8, 0), 2, 12), {"json": b'{"boxes": [["a", 0, 0, 1, 1]]}'}, "no list of"),
        (BoxField(ImageField(8, 0), 2, 12), {"json": b'{"boxes": [[1, 0, 0, 1]]}'}, "no list of"),
        (BOXES, {"json": b'{"boxes": [[0, 0, 0, 1, 1], [12, 0, 0, 1, 1]]}'}, "the label 12: .* from 0 to 11"),
        (BOXES, {"json": b'{"boxes": [[-1, 0, 0, 1, 1]]}'}, "the label -1"),
        (BOXES, {"json": b'{"boxes": [[0.5, 0, 0, 1, 1]]}'}, "the label 0.5: it takes a whole number"),
        (BOXES, {"json": b'{"boxes": [[NaN, 0, 0, 1, 1]]}'}, "the label nan"),
    ],
)
def test_what_is_wrong_makes_a_bad_sample(reader, members, message) -> None:
    with pytest.raises(BadSample, match=message):
        reader(sample(**members), 0)
