"""Maps, boxes and sizes share the image's crop and flip, and invalid ones are bad samples."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.fields.image import ImageField
from ldm.data.fields.metadata import ClassField
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
    image_field = ImageField(24, seed=3, random_crop=True, flip=True)
    ramps = sample(seg_png=png(ramp()[..., 0]), depth_png=png(ramp()[..., 0]))
    x = image_field(ramps, position)[0]
    assert torch.equal(SegmentationField(image_field)(ramps, position), x)
    depth = DepthField(image_field)(ramps, position)
    assert torch.allclose((depth[0] + 1) / 2 * 255, x.float(), atol=1e-3)


def test_labels_are_never_interpolated() -> None:
    labels = np.zeros((48, 80), np.uint8)
    labels[:, 40:] = 200
    halves = sample(seg_png=png(labels), png=png(ramp(80, 48)))
    assert set(SegmentationField(ImageField(16, seed=0))(halves, 0).unique().tolist()) == {0, 200}


def test_depth_of_sixteen_bits() -> None:
    depth_16 = sample(depth_png=png(np.linspace(1000, 30000, 24 * 40).reshape(24, 40).astype(np.uint16)))
    depth = DepthField(ImageField(24, seed=0))(depth_16, 0)
    assert -1 < depth.min() < depth.max() < 0


def test_a_stored_mask_is_black_and_white() -> None:
    mask = MaskField(ImageField(24, seed=0))(sample(mask_png=png(ramp()[..., 0] * 6)), 0)
    assert set(mask.unique().tolist()) == {0, 255} and mask.shape == (1, 24, 24)


def test_boxes_follow_the_crop() -> None:
    field = BoxField(ImageField(24, seed=0), count=3, num_labels=12)  # the middle 24 of 40 columns: 8 to 32
    listed = [[2, 8 / 40, 0, 20 / 40, 0.5], [5, 0, 0, 9 / 40, 1]]
    boxes = field(sample(json=json.dumps({"boxes": listed}).encode()), 0)
    assert torch.allclose(boxes[0], torch.tensor([2, 0, 0, 0.5, 0.5]), atol=1e-6)
    assert boxes[1:].tolist() == [[-1, 0, 0, 0, 0]] * 2  # a ninth of the second box remains


def test_boxes_follow_the_flip() -> None:
    image_field = ImageField(24, seed=3, random_crop=True, flip=True)
    box_field = BoxField(image_field, 1, num_labels=12, min_visible=0.0)
    one_box = sample(json=json.dumps({"boxes": [[1, 0.4, 0.25, 0.5, 0.75]]}).encode())
    for position in range(12):
        x = image_field(one_box, position)[0]
        _, left, top, right, bottom = box_field(one_box, position)[0].tolist()
        inside = (x >= 16) & (x < 20)  # columns of the image that the box covers
        columns = torch.nonzero(inside.any(0)).flatten()
        if len(columns):
            assert columns.min() == pytest.approx(left * 24) and columns.max() + 1 == pytest.approx(
                right * 24
            )
        assert (top, bottom) == (0.25, 0.75)


def test_sizes_include_the_corner_of_the_crop() -> None:
    image_field = ImageField(24, seed=3, random_crop=True)
    lefts = set()
    for position in range(12):
        resized = sample(json=b'{"original_height": 240, "original_width": 400}')
        height, width, top, left, *target = SizeField(image_field)(resized, position).tolist()
        assert (height, width, top, target) == (240, 400, 0, [24, 24])
        assert image_field(resized, position)[0, 0, 0] == left
        lefts.add(left)
    assert len(lefts) > 3


@pytest.mark.parametrize(
    ("text", "original"),
    [
        ('{"original_height": null, "original_width": 400}', [24, 400]),
        ('{"original_height": "240", "original_width": NaN}', [240, 40]),
        ('{"original_height": 0, "original_width": -3}', [24, 40]),
        ('{"original_height": true, "original_width": [400]}', [24, 40]),
        ("half {", [24, 40]),
    ],
)
def test_an_original_size_that_is_no_size_is_that_of_the_image(text: str, original: list[float]) -> None:
    assert SizeField(ImageField(24, seed=0))(sample(json=text.encode()), 0).tolist()[:2] == original


@pytest.mark.parametrize("text", ["{}", '{"boxes": null}', '{"boxes": []}', '{"box": 1}'])
def test_an_image_without_boxes(text: str) -> None:
    assert BOXES(sample(json=text.encode()), 0).tolist() == [[-1, 0, 0, 0, 0]] * 2


def test_rounded_corners_may_exceed_the_image_a_little() -> None:
    boxes = BoxField(ImageField(24, 0), 1, 12)(
        sample(json=b'{"boxes": [[0, -0.0009, 0, 1.0009, 1.0005]]}'), 0
    )
    assert boxes.tolist() == [[0, 0, 0, 1, 1]]


def test_a_class() -> None:
    assert ClassField(10)(sample(cls=b" 9\n"), 0) == 9
    assert ClassField(10**18)(sample(cls=b"9" * 18), 0) == 10**18 - 1


@pytest.mark.parametrize(
    ("field", "members", "message"),
    [
        (ClassField(10), {"cls": b"10"}, "0.tar is '10'.* from 0 to 9"),
        (ClassField(10), {"cls": b"cat"}, "'cat'"),
        (ClassField(10), {}, "has no .cls"),
        (ClassField(10), {"cls": b"9" * 5000}, "from 0 to 9"),
        (SegmentationField(ImageField(8, 0)), {"seg_png": png(ramp())}, "mode RGB"),
        (SegmentationField(ImageField(8, 0)), {"seg_png": png(ramp(30, 30)[..., 0])}, "30x30 .* 40x24"),
        (SegmentationField(ImageField(8, 0)), {"seg_png": b"no image"}, "cannot be read"),
        (SegmentationField(ImageField(8, 0)), {}, "has no .seg.png"),
        (BoxField(ImageField(8, 0), 2, 12), {"json": b'{"boxes": [["a", 0, 0, 1, 1]]}'}, "the boxes of"),
        (BoxField(ImageField(8, 0), 2, 12), {"json": b'{"boxes": [[1, 0, 0, 1]]}'}, "the boxes of"),
        (BOXES, {"json": b'{"boxes": [[0, 0, 0, 1, 1], [12, 0, 0, 1, 1]]}'}, "label 12, .* from 0 to 11"),
        (BOXES, {"json": b'{"boxes": [[-1, 0, 0, 1, 1]]}'}, "label -1"),
        (BOXES, {"json": b'{"boxes": [[0.5, 0, 0, 1, 1]]}'}, "label 0.5, not a whole number"),
        (BOXES, {"json": b'{"boxes": [[NaN, 0, 0, 1, 1]]}'}, "label nan"),
        (BOXES, {"json": b'{"boxes": [[0, NaN, 0, 1, 1]]}'}, "0 <= left <= right <= 1"),
        (BOXES, {"json": b'{"boxes": [[0, 0, 0, Infinity, 1]]}'}, "0 <= left <= right <= 1"),
        (BOXES, {"json": b'{"boxes": [[0, 0.5, 0, 0.4, 1]]}'}, "0 <= left <= right <= 1"),
        (BOXES, {"json": b'{"boxes": [[0, 0, 0.5, 1, 0.4]]}'}, "0 <= top <= bottom <= 1"),
        (BOXES, {"json": b'{"boxes": [[0, 3, 4, 20, 12]]}'}, "as shares of the image's"),
        (BOXES, {"json": b'{"boxes": [[0, -0.01, 0, 1, 1]]}'}, "as shares of the image's"),
    ],
)
def test_invalid_members_make_a_bad_sample(field, members, message) -> None:
    with pytest.raises(BadSample, match=message):
        field(sample(**members), 0)
