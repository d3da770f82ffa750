"""Labels, masks and grey maps of any depth have the right values, or say why they are refused."""

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ldm.data.fields.maps import decode_grey_map, decode_labels, decode_mask
from ldm.data.fields.unreadable import Unreadable, UnsuitableMap
from tests.data.fields.test_decode import encoded
from tests.support.raw_images import png, tiff


def shorts(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def palette(colours: list[int], **options: object) -> bytes:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette(colours)
    return encoded(image, "PNG", **options)


VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(1, 0, [b"\x40"], 3), [0, 1, 0]),
        (png(2, 0, [b"\x1b"], 4), [0, 1, 2, 3]),
        (png(4, 0, [b"\x1f"], 2), [1, 15]),
        (png(8, 0, [b"\x07\xff"], 2), [7, 255]),
        (png(8, 0, [b"\x07\xff"], 2, shorts(7)), [7, 255]),
        (png(16, 0, [shorts(7, 255)], 2), [7, 255]),
        (png(2, 0, [b"\x1b"], 4, shorts(1)), [0, 1, 2, 3]),
        (palette(VOC), [0, 1, 2]),
        (palette(VOC, transparency=0), [0, 1, 2]),
    ],
)
def test_labels_are_the_stored_values(data: bytes, expected: list[int]) -> None:
    labels = decode_labels(data)
    assert labels.dtype == np.uint8 and labels[0].tolist() == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(16, 0, [shorts(7, 256)], 2), "has the label 256: use labels from 0 to 255"),
        (encoded(Image.new("RGB", (4, 4)), "PNG"), "has mode RGB, but a semantic map is grey"),
        (encoded(Image.new("LA", (4, 4)), "PNG"), "has mode LA"),
        (encoded(Image.new("RGBA", (4, 4)), "PNG"), "has mode RGBA"),
        (encoded(Image.new("L", (4, 4)), "JPEG"), "is a JPEG, which may change labels: save it as a PNG"),
        (encoded(Image.new("L", (4, 4)), "TIFF"), "is a TIFF"),
    ],
)
def test_other_label_maps_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(UnsuitableMap, match=message):
        decode_labels(data)


STROKES = Image.new("LA", (3, 1), (255, 0))
STROKES.putpixel((1, 0), (255, 255))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(STROKES, "PNG"), [0, 1, 0]),
        (encoded(STROKES.convert("RGBA"), "PNG"), [0, 1, 0]),
        (encoded(STROKES.convert("RGBA"), "WEBP", lossless=True), [0, 1, 0]),
        (encoded(STROKES, "TIFF"), [0, 1, 0]),
        (png(1, 0, [b"\x40"], 3), [0, 1, 0]),
        (png(1, 0, [b"\x40"], 3, shorts(1)), [0, 0, 0]),
        (png(8, 0, [b"\x00\x80\xff"], 3), [0, 128 / 255, 1]),
        (png(16, 0, [shorts(0, 40000, 65535)], 3), [0, 40000 / 65535, 1]),
        (png(16, 0, [shorts(0, 40000, 65535)], 3, shorts(65535)), [0, 40000 / 65535, 0]),
        (tiff(3, 32, struct.pack("<3f", 0, 0.25, 1), sample_format=3), [0, 0.25, 1]),
        (palette([0] * 3 + [255] * 3 + [100] * 3), [0, 1, 100 / 255]),
        (palette([0] * 3 + [255] * 3 + [100] * 3, transparency=b"\xff\x80\x00"), [0, 128 / 255, 0]),
        (palette([9, 8, 7] + [255] * 3 + [200, 10, 10], transparency=2), [8 / 255, 1, 0]),  # a hidden colour
    ],
)
def test_a_mask_is_its_grey_where_it_is_opaque(data: bytes, expected: list[float]) -> None:
    assert np.allclose(decode_mask(data)[0], expected, atol=1e-3)


@pytest.mark.parametrize("decode", [decode_mask, decode_grey_map])
def test_colours_are_refused_and_the_noise_of_a_jpeg_is_not(decode) -> None:
    for colour in ("red", "#7f6a7f"):
        with pytest.raises(UnsuitableMap, match="has colours: save it in grey, with 8 or 16 bits"):
            decode(encoded(Image.new("RGB", (4, 4), colour), "PNG"))
    with pytest.raises(UnsuitableMap, match="has colours"):
        decode(palette(VOC))
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    grey = Image.fromarray(noise).convert("RGB")
    assert np.abs(decode(encoded(grey, "JPEG", quality=98)) * 255 - noise).max() < 8


def test_transparent_pixels_of_a_depth_map_are_refused_and_opaque_alpha_is_not() -> None:
    with pytest.raises(UnsuitableMap, match="has transparent pixels, which have no value: save it without"):
        decode_grey_map(encoded(STROKES, "PNG"))
    with pytest.raises(UnsuitableMap, match="has transparent pixels"):
        decode_grey_map(png(16, 0, [shorts(5, 7)], 2, shorts(7)))
    opaque = encoded(Image.new("LA", (2, 1), (51, 255)), "PNG")
    assert np.allclose(decode_grey_map(opaque), 0.2)


@pytest.mark.parametrize("decode", [decode_labels, decode_mask, decode_grey_map])
def test_incomplete_files_and_unknown_values_are_unreadable(decode) -> None:
    for data in (b"", b"<html>", encoded(Image.new("L", (64, 64)), "PNG")[:60]):
        with pytest.raises(Unreadable) as error:
            decode(data)
        assert not isinstance(error.value, UnsuitableMap)


def test_a_map_is_turned_by_its_own_orientation() -> None:
    image, exif = Image.fromarray(np.array([[1, 2, 3]], np.uint8)), Image.Exif()
    exif[0x0112] = 6
    file = BytesIO()
    image.save(file, "PNG", exif=exif)
    assert decode_labels(file.getvalue()).tolist() == [[1], [2], [3]]
    assert (decode_mask(file.getvalue()) * 255).round().tolist() == [[1], [2], [3]]
