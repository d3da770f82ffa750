import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ldm.data.fields.decode import decode, to_tensor, upright_size
from ldm.data.fields.resize import resize_to_cover
from ldm.data.fields.unreadable import TooManyPixels, Unreadable

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


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_decode_turns_an_image_upright_by_its_exif(format: str) -> None:
    image = Image.new("RGB", (6, 4), "white")
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    turned = decode(encoded(image, format, exif=exif, lossless=True))
    assert turned.size == (4, 6) and turned.getpixel((3, 0)) == (0, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("segment", ["exif", "xmp"])
def test_decode_turns_a_jpeg_as_pillow_does(orientation: int, segment: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    xmp = f'<x tiff:Orientation="{orientation}"/>'.encode()
    data = encoded(wave(60, 40), "JPEG", **({"exif": exif} if segment == "exif" else {"xmp": xmp}))
    theirs = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    assert theirs is not None and theirs.size == ((60, 40) if orientation < 5 else (40, 60))
    assert np.array_equal(np.asarray(decode(data)), np.asarray(theirs))


@pytest.mark.parametrize("min_size", [None, (64, 64), (20, 200), (5, 5)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_has_the_same_pixels_as_in_pillow(
    mode: str, progressive: bool, min_size: tuple[int, int] | None
) -> None:
    data = encoded(wave(513, 375).convert(mode), "JPEG", quality=92, progressive=progressive)
    theirs: Image.Image = Image.open(BytesIO(data))
    if min_size and mode != "CMYK":
        scale = {(64, 64): 2, (20, 200): 1, (5, 5): 8}[min_size]
        theirs.draft(None, (513 // scale, 375 // scale))  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(decode(data, min_size)), np.asarray(theirs.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_upright_size_is_that_of_the_decoded_image(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(wave(60, 40), format, exif=exif)
    assert upright_size(data) == decode(data).size[::-1] == ((40, 60) if orientation < 5 else (60, 40))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_orientations_that_do_not_exist_and_corrupt_exif_leave_an_image_as_it_is(format: str) -> None:
    image = wave(60, 40)
    for value in (0, 9, 300):
        exif = Image.Exif()
        exif[0x0112] = value
        data = encoded(image, format, exif=exif)
        assert upright_size(data) == (40, 60) and decode(data).size == (60, 40)
    data = encoded(image, format, exif=b"Exif\0\0no directory")
    assert upright_size(data) == (40, 60) and decode(data).size == (60, 40)


def test_a_jpeg_of_several_pictures_is_turned_like_any_other() -> None:
    exif, file = Image.Exif(), BytesIO()
    exif[0x0112] = 6
    wave(60, 40).save(file, "MPO", exif=exif, save_all=True, append_images=[wave(60, 40)])
    assert Image.open(BytesIO(file.getvalue())).format == "MPO"  # as phones write
    assert upright_size(file.getvalue()) == (60, 40) and decode(file.getvalue()).size == (40, 60)


def test_exif_behind_the_pixels_of_a_png_counts() -> None:
    plain, exif = encoded(wave(60, 40), "PNG"), Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    data = plain[:-12] + chunk + plain[-12:]
    assert upright_size(data) == (60, 40) and decode(data).size == (40, 60)


def corrupt(data: bytes, damage: str) -> bytes:
    """Remove the end, overwrite 2 KB with zeros, or overwrite two bytes with a marker."""
    half = len(data) // 2
    if damage == "cut":
        return data[:half]
    if damage == "last bytes":
        return data[:-2]
    if damage == "zeros":
        return data[:half] + bytes(2000) + data[half + 2000 :]
    return data[:half] + b"\xff\xd1" + data[half + 2 :]


@pytest.mark.parametrize("damage", ["cut", "last bytes", "zeros", "a marker"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_corrupt_jpeg_is_unreadable_even_where_pillow_reads_it(mode: str, damage: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    data = corrupt(encoded(Image.fromarray(noise).convert(mode), "JPEG"), damage)
    if damage not in ("cut", "last bytes"):
        Image.open(BytesIO(data)).load()
    with pytest.raises(Unreadable):
        decode(data)


def test_bytes_after_a_complete_jpeg_are_ignored() -> None:
    data = encoded(wave(60, 40), "JPEG")
    assert np.array_equal(np.asarray(decode(data + data)), np.asarray(decode(data)))
    padded = data[:2] + b"\xff\xff" + data[2:]  # padding before a marker is allowed
    assert np.array_equal(np.asarray(decode(padded)), np.asarray(decode(data)))


@pytest.mark.parametrize("cut", [0, 10, -300])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_an_incomplete_image_is_unreadable(cut: int, format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    with pytest.raises(Unreadable):
        decode(encoded(Image.fromarray(noise), format)[:cut])


def test_to_tensor_puts_channels_first() -> None:
    pixels = to_tensor(Image.new("RGB", (6, 4), ORANGE))
    assert pixels.shape == (3, 4, 6) and pixels.dtype == torch.uint8
    assert tuple(pixels[:, 0, 0].tolist()) == ORANGE


def wave(width: int, height: int) -> Image.Image:
    """A smooth image, as photographs are."""
    y, x = np.mgrid[:height, :width] / 20
    parts = [np.sin(x + k) * np.cos(y * (k + 1) / 2) for k in range(3)]
    return Image.fromarray((np.stack(parts, -1) * 100 + 128).astype(np.uint8))


def psnr(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    error = (ours.double() - theirs.double()).square().mean()
    return float(10 * torch.log10(255**2 / error))


@pytest.mark.parametrize(
    "width,height,scale", [(255, 200, 1), (256, 300, 2), (512, 752, 4), (1024, 1024, 8), (200, 1024, 1)]
)
def test_a_jpeg_is_decoded_smaller_while_it_covers_its_target_twice(
    width: int, height: int, scale: int
) -> None:
    data = encoded(wave(width, height), "JPEG", quality=92)
    reduced = decode(data, (64, 64))
    assert reduced.size == (-(-width // scale), -(-height // scale))
    ours, theirs = (resize_to_cover(to_tensor(image), 64, 64) for image in (reduced, decode(data)))
    assert psnr(ours, theirs) > 45


def test_a_rotated_jpeg_is_reduced_by_its_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(wave(600, 1200), "JPEG", exif=exif)  # 1200 x 600 once turned
    assert decode(data, (100, 300)).size == (1200 // 2, 600 // 2)
    assert decode(data, (300, 100)).size == (1200, 600)


def header_of_a_png(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(bytes(900), 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (chunk, pixels)
    )


@pytest.mark.parametrize("side", [9_500, 20_000])
def test_too_many_pixels_are_rejected_before_they_are_decoded(side: int) -> None:
    with pytest.raises(TooManyPixels, match="more than 89,478,485"):
        decode(header_of_a_png(side, side))
