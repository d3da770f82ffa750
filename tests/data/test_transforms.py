from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.transforms import Pictures, Unreadable, decode, resize_short_side, to_tensor

ORANGE = (250, 150, 50)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def palette_with_a_hole() -> bytes:
    image = Image.new("P", (6, 4), 0)
    image.putpalette([*ORANGE, 0, 0, 0])
    return encoded(image, "PNG", transparency=0)


def animated() -> bytes:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((0, 0, 0), (255, 255, 255))]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    "data,expected,tolerance",
    [
        (encoded(Image.new("RGB", (6, 4), ORANGE), "PNG"), ORANGE, 0),
        (encoded(Image.new("RGB", (6, 4), ORANGE), "JPEG", quality=95), ORANGE, 4),
        (encoded(Image.new("RGB", (6, 4), ORANGE), "JPEG", quality=95, progressive=True), ORANGE, 4),
        (encoded(Image.new("RGB", (6, 4), ORANGE), "WEBP", lossless=True), ORANGE, 0),
        (encoded(Image.new("L", (6, 4), 77), "JPEG"), (77, 77, 77), 2),
        (encoded(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "JPEG"), (255, 0, 0), 4),
        (encoded(Image.new("RGBA", (6, 4), (*ORANGE, 0)), "PNG"), (255, 255, 255), 0),
        (encoded(Image.new("RGBA", (6, 4), (0, 0, 0, 128)), "PNG"), (127, 127, 127), 1),
        (encoded(Image.new("LA", (6, 4), (0, 0)), "PNG"), (255, 255, 255), 0),
        (palette_with_a_hole(), (255, 255, 255), 0),
        (encoded(Image.new("1", (6, 4), 1), "PNG"), (255, 255, 255), 0),
        (encoded(Image.fromarray(np.full((4, 6), 128 * 257, np.uint16)), "PNG"), (128, 128, 128), 0),
        (animated(), (0, 0, 0), 0),
    ],
    ids="png jpg progressive webp grey cmyk alpha half grey-alpha palette-alpha bits 16-bit animated".split(),
)
def test_decode_gives_rgb(data: bytes, expected: tuple[int, int, int], tolerance: int) -> None:
    image = decode(data)
    assert image.mode == "RGB" and image.size == (6, 4)
    assert np.abs(np.asarray(image, int) - expected).max() <= tolerance


def test_decode_turns_a_picture_by_its_exif() -> None:
    image = Image.new("RGB", (6, 4), "white")
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    turned = decode(encoded(image, "PNG", exif=exif))
    assert turned.size == (4, 6) and turned.getpixel((3, 0)) == (0, 0, 0)


@pytest.mark.parametrize("cut", [0, 10, -300])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_what_is_not_a_whole_picture_is_unreadable(cut: int, format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    with pytest.raises(Unreadable):
        decode(encoded(Image.fromarray(noise), format)[:cut])


def test_resize_is_antialiased_and_never_short() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (99, 50)))
    small = np.asarray(resize_short_side(stripes, 33), int)
    assert small.shape == (33, 33) and abs(small[:, 3:-3] - 127).max() < 30
    assert resize_short_side(Image.new("RGB", (1001, 333)), 64).size == (192, 64)
    assert resize_short_side(Image.new("RGB", (10, 31)), 64).size == (64, 198)


def test_to_tensor_puts_channels_first() -> None:
    pixels = to_tensor(Image.new("RGB", (6, 4), ORANGE))
    assert pixels.shape == (3, 4, 6) and pixels.dtype == torch.uint8 and pixels.is_contiguous()
    assert tuple(pixels[:, 0, 0].tolist()) == ORANGE


def ramp() -> Image.Image:
    """Pixel (x, y) is (x, y, 0)."""
    y, x = np.mgrid[:8, :20]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def corner(pictures: Pictures, position: int) -> tuple[int, int]:
    return pictures.transform(ramp(), position).getpixel((0, 0))[:2]  # type: ignore[index,return-value]


def test_the_centre_is_cropped_unless_asked_otherwise() -> None:
    assert corner(Pictures(size=8, seed=0), 3) == (6, 0)


def test_crop_and_flip_depend_on_seed_and_position_alone() -> None:
    def corners(seed: int) -> list[tuple[int, int]]:
        return [corner(Pictures(8, seed, random_crop=True, flip=True), position) for position in range(200)]

    assert corners(1) == corners(1) != corners(2)
    starts = [corner(Pictures(8, 1, random_crop=True), position)[0] for position in range(400)]
    assert set(starts) == set(range(13))


def test_half_of_the_pictures_are_flipped() -> None:
    flipped = sum(corner(Pictures(8, 1, flip=True), position) == (13, 0) for position in range(400))
    assert 160 < flipped < 240
