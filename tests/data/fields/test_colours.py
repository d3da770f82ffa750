"""Colours, deep greys, transparency and colour profiles become the right sRGB, or are refused."""

import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from ldm.data.fields.colours import is_plain, to_rgb
from ldm.data.fields.decode import decode, decode_pixels
from ldm.data.fields.unreadable import Unreadable
from tests.data.fields.test_decode import encoded
from tests.support import raw_images
from tests.support.raw_images import png, tiff


def row(data: bytes) -> list[list[int]]:
    """The pixels of the first row."""
    pixels: list[list[int]] = np.asarray(decode(data))[0].tolist()
    return pixels


def greys(*values: int) -> list[list[int]]:
    return [[value] * 3 for value in values]


def shorts(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(1, 0, [b"\x40"], 2), greys(0, 255)),
        (png(1, 0, [b"\x40"], 2, shorts(1)), greys(0, 255)),
        (png(1, 0, [b"\x40"], 2, shorts(0)), greys(255, 255)),
        (png(2, 0, [b"\x1b"], 4), greys(0, 85, 170, 255)),
        (png(2, 0, [b"\x1b"], 4, shorts(1)), greys(0, 255, 170, 255)),
        (png(4, 0, [b"\x1f"], 2, shorts(1)), greys(255, 255)),
        (png(8, 0, [b"\x07\x08"], 2, shorts(7)), greys(255, 8)),
        (png(16, 0, [shorts(1000, 65535)], 2), greys(4, 255)),
        (png(16, 0, [shorts(1000, 1001)], 2, shorts(1000)), greys(255, 4)),
        (png(16, 2, [shorts(65535, 0, 25700)], 1), [[255, 0, 100]]),
        (png(16, 2, [shorts(65535, 0, 1000, 1, 2, 3)], 2, shorts(65535, 0, 1000)), [[255] * 3, [0] * 3]),
        (png(16, 4, [shorts(0, 65535, 0, 0)], 2), greys(0, 255)),
        (png(16, 6, [shorts(0, 0, 65535, 65535, 0, 0, 65535, 0)], 2), [[0, 0, 255], [255] * 3]),
    ],
)
def test_a_png_of_any_depth_with_a_transparent_value(data: bytes, expected: list[list[int]]) -> None:
    assert row(data) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(2, 1, b"\x40"), greys(0, 255)),
        (tiff(2, 1, b"\x40", photometric=0), greys(255, 0)),
        (tiff(2, 4, b"\x1f"), greys(17, 255)),
        (tiff(2, 8, b"\x01\xff", photometric=0), greys(254, 0)),
        (tiff(2, 12, b"\x80\x0f\xff"), greys(128, 255)),
        (tiff(2, 16, struct.pack("<2H", 1000, 65535)), greys(4, 255)),
        (tiff(2, 16, struct.pack("<2H", 1000, 65535), photometric=0), greys(251, 0)),
        (tiff(3, 32, struct.pack("<3f", 0, 0.25, 1), sample_format=3), greys(0, 64, 255)),
        (tiff(3, 32, struct.pack("<3f", 0, 0.25, 1), photometric=0, sample_format=3), greys(255, 191, 0)),
    ],
)
def test_a_tiff_of_any_depth_and_either_sense(data: bytes, expected: list[list[int]]) -> None:
    assert row(data) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff(2, 32, struct.pack("<2f", 0, 1.5), sample_format=3), "floats from 0 to 1.5, not within 0..1"),
        (tiff(2, 32, struct.pack("<2f", -0.1, 1), sample_format=3), "floats from -0.1 to 1"),
        (tiff(2, 32, struct.pack("<2f", float("nan"), 1), sample_format=3), "floats from nan to nan"),
        (tiff(2, 32, struct.pack("<2f", 0, float("inf")), sample_format=3), "floats from 0 to inf"),
        (tiff(2, 64, struct.pack("<2d", 0, 1), sample_format=3), "no image of a known format"),
        (tiff(2, 32, struct.pack("<2I", 0, 9)), "32-bit or signed integers"),
        (tiff(2, 32, struct.pack("<2i", 0, 9), sample_format=2), "32-bit or signed integers"),
        (tiff(2, 16, struct.pack("<2h", 0, 9), sample_format=2), "32-bit or signed integers"),
        (tiff(2, 8, b"\x00\x09", sample_format=2), "signed integers"),
    ],
)
def test_values_without_a_known_white_are_unreadable(data: bytes, message: str) -> None:
    with pytest.raises(Unreadable, match=message):
        decode_pixels(data)


def test_the_inks_of_a_jpeg_by_adobe_are_inverted_once() -> None:
    colours = {
        "cyan": (255, 0, 0, 0),
        "black": (0, 0, 0, 255),
        "paper": (0, 0, 0, 0),
        "red": (0, 255, 255, 0),
    }
    expected = {"cyan": (0, 255, 255), "black": (0, 0, 0), "paper": (255, 255, 255), "red": (255, 0, 0)}
    for name, ink in colours.items():
        data = encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=98)
        assert b"Adobe" in data and np.abs(np.asarray(decode(data), int) - expected[name]).max() <= 3


@pytest.mark.parametrize(("background", "grey"), [("white", 255), ("grey", 128), ("black", 0)])
def test_a_background_shows_through_transparent_pixels(background: Any, grey: int) -> None:
    image = Image.new("RGBA", (3, 1), (200, 100, 50, 255))
    image.putpixel((1, 0), (200, 100, 50, 0))
    image.putpixel((2, 0), (200, 100, 50, 51))
    mixed = tuple(round(0.2 * value + 0.8 * grey) for value in (200, 100, 50))
    pixels = np.asarray(to_rgb(image, background), int)[0]
    assert np.abs(pixels - [(200, 100, 50), (grey,) * 3, mixed]).max() <= 1


@pytest.mark.parametrize("size", [(32, 64), (320, 160), (5, 7)])
def test_white_and_black_drawings_show_on_a_checker(size: tuple[int, int]) -> None:
    checker = np.asarray(to_rgb(Image.new("RGBA", size, (0, 0, 0, 0)), "checker"))[..., 0]
    side = max(1, min(size) // 16)
    assert set(np.unique(checker)) == {102, 153}
    assert (checker[:side, :side] == 102).all() and (checker[:side, side : 2 * side] == 153).all()
    assert (checker[side : 2 * side, :side] == 153).all()


def test_what_all_readers_see_alike() -> None:
    opaque, hole = Image.new("RGBA", (2, 2), (1, 2, 3, 255)), Image.new("LA", (2, 2), (9, 254))
    assert is_plain(opaque) and is_plain(Image.new("P", (2, 2))) and is_plain(Image.new("CMYK", (2, 2)))
    assert (
        not is_plain(hole)
        and not is_plain(Image.new("I;16", (2, 2)))
        and not is_plain(Image.new("F", (2, 2)))
    )


PIXELS = np.array(
    [[(200, 30, 30), (20, 180, 60), (30, 60, 220), (250, 220, 40), (128, 128, 128), (255,) * 3]]
)


def adobe_to_srgb(rgb: np.ndarray) -> np.ndarray:
    xyz = (rgb / 255) ** raw_images.ADOBE_GAMMA @ raw_images.ADOBE_TO_XYZ.T
    return raw_images.encode_srgb(xyz @ np.linalg.inv(raw_images.SRGB_TO_XYZ).T)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_colour_profile_is_applied_in_every_container(format: str) -> None:
    pixels = PIXELS.repeat(16, 0).repeat(16, 1).astype(np.uint8)
    options = {
        "JPEG": {"quality": 98, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100},
    }
    image = Image.fromarray(pixels)
    data = encoded(image, format, icc_profile=raw_images.adobe_profile(), **options.get(format, {}))
    expected = adobe_to_srgb(PIXELS[0])
    assert np.abs(expected - PIXELS[0]).max() > 30
    centres = np.asarray(decode(data), float)[8, 8::16]
    assert np.abs(centres - expected).max() <= (6 if format in ("JPEG", "AVIF") else 2)
    plain = encoded(image, format, icc_profile=raw_images.adobe_profile("sRGB"), **options.get(format, {}))
    assert np.abs(np.asarray(decode(plain), float)[8, 8::16] - PIXELS[0]).max() <= 5


def test_the_profile_of_greys_palettes_transparency_and_inks() -> None:
    linear, adobe = raw_images.linear_grey_profile(), raw_images.adobe_profile()
    expected = raw_images.encode_srgb(np.array(100 / 255))
    for data in (
        encoded(Image.new("L", (16, 16), 100), "PNG", icc_profile=linear),
        encoded(Image.new("L", (16, 16), 100), "JPEG", quality=98, icc_profile=linear),
        encoded(Image.new("LA", (16, 16), (100, 255)), "PNG", icc_profile=linear),
        encoded(Image.fromarray(np.full((16, 16), 100 * 257, np.uint16)), "PNG", icc_profile=linear),
    ):
        assert np.abs(np.asarray(decode(data), float) - expected).max() <= 2
    red, transparent = adobe_to_srgb(np.array([200, 30, 30])), (200, 30, 30, 0)
    palette = Image.new("RGB", (4, 4), (200, 30, 30)).quantize(2)
    assert np.abs(np.asarray(decode(encoded(palette, "PNG", icc_profile=adobe)), float) - red).max() <= 2
    image = Image.new("RGBA", (4, 4), (200, 30, 30, 255))
    image.putpixel((0, 0), transparent)
    pixels = np.asarray(decode(encoded(image, "PNG", icc_profile=adobe)), float)
    assert pixels[0, 0].tolist() == [255] * 3 and np.abs(pixels[1, 1] - red).max() <= 2
    ink = raw_images.ink_profile({(0, 0, 0, 0): 100, (1, 0, 0, 0): 50})
    cyan = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=98, icc_profile=ink)
    assert np.abs(np.asarray(decode(cyan), float) - 119).max() <= 4  # L* of 50, not the naive cyan


@pytest.mark.parametrize(
    "profile", [b"no profile", raw_images.linear_grey_profile(), raw_images.ink_profile({})]
)
def test_a_profile_that_does_not_fit_is_ignored(profile: bytes) -> None:
    data = encoded(Image.new("RGB", (4, 4), (200, 30, 30)), "PNG", icc_profile=profile)
    assert np.asarray(decode(data))[0, 0].tolist() == [200, 30, 30]


def test_the_profile_that_pillow_writes_for_srgb_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(PIXELS.astype(np.uint8))
    assert np.array_equal(np.asarray(decode(encoded(image, "PNG", icc_profile=profile))), PIXELS)


def test_only_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        file = BytesIO()
        options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
        frames[0].save(file, format, save_all=True, append_images=frames[1:], **options)
        assert Image.open(BytesIO(file.getvalue())).n_frames == 3  # type: ignore[attr-defined]
        assert np.abs(np.asarray(decode(file.getvalue()), int) - (255, 0, 0)).max() <= 3, format
