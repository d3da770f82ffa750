"""Every Pillow mode, container, EXIF orientation and transparency through pack, loader, maps and masks."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ldm.data.fields.decode import decode_pixels
from ldm.data.fields.image import ImageField
from ldm.data.fields.maps import decode_grey_map, decode_labels, decode_mask
from ldm.data.fields.spatial import BoxField, DepthField, MaskField, SegmentationField, image_size
from ldm.data.fields.unreadable import Unreadable
from ldm.data.prepare.write_shards import write_shard, write_shards
from ldm.data.shards.reader import BadSample, Sample, open_shards
from ldm.data.sources import Record
from tests.support.image_cases import BLOCK, Case, all_cases, stored_image

CASES = list(all_cases())
FILES = [case for case in CASES if case.container != "rendered"]
HEIGHT, WIDTH = 2 * BLOCK, 3 * BLOCK
SHAPE = (HEIGHT, WIDTH)
BOX = [1.0, 0.0, 0.25, 1 / 3, 0.75]
GREYS = {"white": 255, "grey": 128, "black": 0}

sampled = pytest.mark.parametrize(
    "step", [9, pytest.param(1, marks=pytest.mark.slow)], ids=["every ninth", "all"]
)


def largest_difference(pixels: np.ndarray | torch.Tensor, expected: np.ndarray) -> float:
    array = np.asarray(pixels, np.float64)
    assert array.shape == expected.shape
    return float(np.abs(array - expected).max())


def check_rgb(
    pixels: np.ndarray | torch.Tensor, case: Case, background: int = 255, jpeg: bool = False
) -> None:
    """Compare (h, w, 3) pixels; those of a JPEG that pack wrote only at the centres of the blocks."""
    part = np.s_[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK] if jpeg else np.s_[:]
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    difference = largest_difference(np.asarray(pixels)[part], case.rgb(background)[part])
    assert difference <= case.tolerance + 20 * jpeg, f"{case} differs by {difference}"


@sampled
def test_the_loader_reads_foreign_shards(tmp_path: Path, step: int) -> None:
    cases = FILES[::step]
    text = json.dumps({"boxes": [BOX]}).encode()
    write_shard(
        tmp_path / "0.tar", ((f"{i:05d}", {"jpg": c.data(), "json": text}) for i, c in enumerate(cases))
    )
    shard, field = open_shards(str(tmp_path))[0], ImageField(SHAPE, seed=0)
    for row, case in enumerate(cases):
        sample = shard.sample(row)
        assert image_size(sample) == SHAPE, case
        if case.mode == "I":
            with pytest.raises(BadSample, match="32-bit or signed integers"):
                field(sample, 0)
            continue
        check_rgb(field(sample, 0).permute(1, 2, 0), case)
        boxes = BoxField(field, 1, num_labels=2)(sample, 0)
        assert torch.allclose(boxes, torch.tensor([BOX])), case


@sampled
@pytest.mark.parametrize("background", GREYS)
def test_pack_stores_what_every_reader_reads_alike(tmp_path: Path, step: int, background) -> None:
    cases = CASES[GREYS[background] % step :: step]
    images = [stored_image(c) if c.container == "rendered" else c.data() for c in cases]
    records = [Record(image, str(c), {"name": str(c)}) for image, c in zip(images, cases, strict=True)]
    report = write_shards(records, tmp_path, shard_size=1000, background=background)
    refused = [str(case) for case in cases if case.mode == "I"]
    assert report.skipped.get("unreadable", 0) == len(refused) and report.packed == len(cases) - len(refused)
    shard = open_shards(str(tmp_path))[0]
    stored = [case for case in cases if case.mode != "I"]
    assert (shard.index.rows["width"] == WIDTH).all() and (shard.index.rows["height"] == HEIGHT).all()
    for row, case in enumerate(stored):
        sample = shard.sample(row)
        assert sample.read("txt").decode() == str(case)
        metadata = json.loads(sample.read("json"))
        sizes = [metadata[k] for k in ("width", "height", "original_width", "original_height")]
        assert sizes == [WIDTH, HEIGHT] * 2, case
        kind = next(kind for kind in ("jpg", "png", "webp") if kind in sample.members)
        is_jpeg = kind == "jpg" and case.container != "JPEG"
        check_rgb(ImageField(SHAPE, 0)(sample, 0).permute(1, 2, 0), case, GREYS[background], is_jpeg)
        theirs: Image.Image = Image.open(BytesIO(sample.read(kind)))
        ImageOps.exif_transpose(theirs, in_place=True)
        check_rgb(np.asarray(theirs.convert("RGB")), case, GREYS[background], is_jpeg)


def check_map(decode, data: bytes, expected: np.ndarray | str, tolerance: float, case: Case) -> None:
    if isinstance(expected, str):
        with pytest.raises(Unreadable, match=expected):
            decode(data)
    else:
        assert largest_difference(decode(data), expected) <= tolerance, case


@sampled
def test_maps_and_masks_have_the_right_values_or_are_refused(step: int) -> None:
    for case in FILES[::step]:
        data, tolerance = case.data(), case.tolerance / 255
        check_map(decode_labels, data, case.labels(), 0, case)
        check_map(decode_grey_map, data, case.grey_map(), tolerance, case)
        check_map(decode_mask, data, case.mask(), tolerance, case)


@sampled
def test_the_fields_of_maps_agree_with_them(step: int) -> None:
    image, field = Case("RGB", "PNG").data(), ImageField(SHAPE, seed=0)
    fields = {
        "seg.png": (SegmentationField(field), Case.labels),
        "depth.png": (DepthField(field), Case.grey_map),
        "mask.png": (MaskField(field), Case.mask),
    }
    for case in FILES[::step]:
        for kind, (read, value) in fields.items():
            sample, expected = Sample(Path("0.tar"), "7", {"png": image, kind: case.data()}), value(case)
            if isinstance(expected, str):
                with pytest.raises(BadSample, match=f"the {kind} of sample 7 in 0.tar .*{expected}"):
                    read(sample, 0)
                continue
            values = np.asarray(read(sample, 0), np.float64).reshape(expected.shape)
            if kind == "mask.png":
                clear = np.abs(expected - 0.5) > 0.03
                assert (values[clear] == np.where(expected >= 0.5, 255, 0)[clear]).all(), case
            else:
                expected = 2 * expected - 1 if kind == "depth.png" else expected
                assert np.abs(values - expected).max() <= 2 * case.tolerance / 255, case


def test_a_map_on_the_stored_pixels_of_a_turned_image_is_a_bad_sample() -> None:
    turned = Case("RGB", "PNG", orientation=6).data()
    flat = Image.open(BytesIO(Case("L", "PNG").data())).transpose(Image.Transpose.ROTATE_90)
    file = BytesIO()
    flat.save(file, "PNG")
    sample = Sample(Path("0.tar"), "7", {"png": turned, "seg.png": file.getvalue()})
    with pytest.raises(BadSample, match="16x24 but the image is 24x16 once it is turned by its EXIF"):
        SegmentationField(ImageField(SHAPE, 0))(sample, 0)


def test_the_cases_cover_every_mode_and_orientation() -> None:
    modes = {case.mode for case in CASES}
    assert modes == set("1 L LA La P PA I I;16 I;16B F RGB RGBA RGBX RGBa CMYK YCbCr HSV LAB".split())
    assert len(CASES) == 709 and {case.orientation for case in CASES} == set(range(1, 9))
    upright = decode_pixels(Case("RGB", "PNG", grey=False).data())
    for orientation in range(2, 9):  # the stored pixels differ, so that a missing turn shows
        stored = np.asarray(stored_image(Case("RGB", "PNG", orientation, grey=False)))
        assert not np.array_equal(stored, upright.permute(1, 2, 0))
