"""What pack stores of an image: its file, or pixels that every reader reads alike; or why it is left out."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.data.fields.decode import decode
from ldm.data.prepare.encode_record import EncodedRecord, RecordEncoder
from ldm.data.sources import Record, SkippedRecord
from tests.data.fields.test_decode import encoded, header_of_a_png
from tests.support.image_cases import Case
from tests.support.raw_images import png


def encode(
    image: bytes | Image.Image, metadata: dict[str, Any] | None = None, **options: Any
) -> EncodedRecord:
    settings = {"format": None, "size": None, "channels": 3, **options}
    item = RecordEncoder([Record(image, "a caption", metadata or {})], **settings)(0)
    assert isinstance(item, EncodedRecord), item
    return item


def refuse(image: bytes | Image.Image, **options: Any) -> SkippedRecord:
    settings = {"format": None, "size": None, "channels": 3, **options}
    item = RecordEncoder([Record(image, "a caption", {"name": "a.png"})], **settings)(0)
    assert isinstance(item, SkippedRecord)
    return item


def drawing(colour: str = "white") -> Image.Image:
    """A square on transparency."""
    image = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    image.paste(colour, (10, 10, 40, 30))
    return image


@pytest.mark.parametrize(
    ("image", "format", "kind"),
    [
        (Image.new("RGB", (6, 4)), "PNG", "png"),
        (Image.new("RGBA", (6, 4), (1, 2, 3, 255)), "PNG", "png"),
        (Image.new("P", (6, 4)), "PNG", "png"),
        (Image.new("1", (6, 4)), "PNG", "png"),
        (Image.new("L", (6, 4)), "JPEG", "jpg"),
        (Image.new("CMYK", (6, 4)), "JPEG", "jpg"),
        (Image.new("RGB", (6, 4)), "WEBP", "webp"),
    ],
)
def test_a_file_that_all_readers_read_alike_is_kept(image: Image.Image, format: str, kind: str) -> None:
    data = encoded(image, format)
    item = encode(data)
    assert (item.image.kind, item.image.data) == (kind, data)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("background", ["white", "grey", "black", "checker"])
def test_transparency_is_stored_as_pixels_without_loss(format: str, background: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    item = encode(encoded(drawing("red"), format, **options), background=background)
    stored = Image.open(BytesIO(item.image.data))
    assert item.image.kind == "png" and stored.mode == "RGB" and "transparency" not in stored.info
    assert stored.getpixel((20, 20)) == (255, 0, 0)
    greys = {"white": {255}, "grey": {128}, "black": {0}, "checker": {102, 153}}[background]
    assert set(np.unique(np.asarray(stored)[:10])) == greys
    assert (
        encode(encoded(drawing(), format, **options), background=background, format="jpg").image.kind == "jpg"
    )


def test_the_transparent_value_of_a_png_of_two_bits_shows_the_background() -> None:
    data = png(2, 0, [b"\x1b"], 4, b"\0\1")
    for background, grey in (("white", 255), ("black", 0)):
        stored = Image.open(BytesIO(encode(data, background=background).image.data))
        assert "transparency" not in stored.info
        assert np.asarray(stored.convert("L"))[0].tolist() == [0, grey, 170, 255]


def test_deep_greys_are_stored_in_eight_bits() -> None:
    levels = np.linspace(0, 65535, 24).reshape(4, 6)
    for image, format in ((levels.astype(np.uint16), "PNG"), ((levels / 65535).astype(np.float32), "TIFF")):
        item = encode(encoded(Image.fromarray(image), format))
        stored = Image.open(BytesIO(item.image.data)).convert("RGB")  # as other readers do
        assert item.image.kind == "png"
        assert np.abs(np.asarray(stored, float)[..., 0] - levels / 257).max() <= 0.5


def test_an_image_that_becomes_one_colour_is_marked() -> None:
    white = encoded(drawing("white"), "PNG")
    assert encode(white).image.is_flat
    assert not encode(white, background="black").image.is_flat
    assert not encode(white, background="grey").image.is_flat
    assert not encode(white, background="checker").image.is_flat
    assert encode(encoded(drawing("black"), "PNG"), background="black").image.is_flat
    assert encode(drawing("white")).image.is_flat and not encode(drawing("red")).image.is_flat
    assert encode(encoded(Image.new("RGB", (9, 9), "teal"), "JPEG")).image.is_flat
    dot = Image.new("RGB", (64, 64))
    dot.putpixel((5, 5), (0, 0, 1))
    assert not encode(encoded(dot, "PNG")).image.is_flat
    assert encode(encoded(Image.new("RGB", (1, 1)), "PNG")).image.is_flat


def test_a_rendered_image_has_one_or_three_channels() -> None:
    assert encode(drawing(), channels=1).image.kind == encode(drawing(), channels=3).image.kind == "png"
    for channels in (2, 4, 5):
        assert refuse(drawing(), channels=channels).reason == "with another number of channels"


@pytest.mark.parametrize(("size", "expected", "is_kept"), [(None, (5, 4), True), (2, (2, 2), False)])
def test_an_array_is_kept_unless_it_is_resized(size, expected: tuple[int, int], is_kept: bool) -> None:
    file = BytesIO()
    np.save(file, np.arange(4 * 5 * 5, dtype=np.uint8).reshape(4, 5, 5))
    image = encode(file.getvalue(), channels=5, size=size).image
    assert (image.size, image.original_size) == (expected, (5, 4))
    assert (image.data == file.getvalue()) == is_kept


def test_bands_of_one_value_each_are_flat() -> None:
    array = np.zeros((4, 5, 5), np.uint8) + np.arange(5, dtype=np.uint8)
    file = BytesIO()
    np.save(file, array)
    assert encode(file.getvalue(), channels=5).image.is_flat
    array[0, 1, 2] = 9
    file = BytesIO()
    np.save(file, array)
    assert not encode(file.getvalue(), channels=5).image.is_flat


@pytest.mark.parametrize("container", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_sizes_are_those_of_the_upright_image(container: str, orientation: int) -> None:
    data = Case("RGB", container, orientation, grey=False).data()  # 24 x 16 once upright
    wrong = {"width": 999, "height": 999, "original_width": 999}
    for size, expected in ((None, [24, 16]), (8, [12, 8])):
        item = encode(data, wrong, size=size)
        assert [item.metadata[k] for k in ("width", "height")] == expected
        assert [item.metadata[k] for k in ("original_width", "original_height")] == [24, 16]
        assert list(decode(item.image.data).size) == expected


def test_a_long_image_is_packed_as_it_is() -> None:
    long = Image.new("RGB", (70_000, 1), "teal")
    assert encode(encoded(long, "PNG"), size=256).image.size == (70_000, 1)
    assert encode(encoded(long, "BMP")).image.kind == "png"  # a JPEG has at most 65,500 pixels per side
    assert encode(encoded(Image.new("RGB", (65_500, 1)), "BMP")).image.kind == "jpg"
    skipped = refuse(encoded(long, "PNG"), format="jpg")
    assert skipped.reason == "too long for a JPEG" and "70000 x 1 pixels, at most 65,500" in skipped.name
    reduced = encode(encoded(Image.new("L", (9000, 90)), "PNG"), size=30)
    assert reduced.image.size == (3000, 30) and reduced.metadata["original_width"] == 9000


@pytest.mark.parametrize("side", [9_500, 25_000])
def test_too_many_pixels_are_a_reason_of_their_own(side: int) -> None:
    skipped = refuse(header_of_a_png(side, side))
    assert skipped.reason == "with too many pixels"
    assert skipped.name.startswith("a.png (") and "more than 89,478,485" in skipped.name


def test_the_reason_names_the_values_that_have_no_known_white() -> None:
    skipped = refuse(encoded(Image.fromarray(np.array([[0, 300]], np.float32)), "TIFF"))
    assert (skipped.reason, skipped.name) == ("unreadable", "a.png (floats from 0 to 300, not within 0..1)")
