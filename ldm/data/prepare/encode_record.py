"""Encode one record of a source for a shard: kept as it is, resized, or converted."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, NamedTuple, TypeAlias

from PIL import Image

from ldm.data.fields.arrays import to_npy
from ldm.data.fields.colours import Background, is_plain, to_rgb
from ldm.data.fields.decode import decode, open_image
from ldm.data.fields.multichannel import decode_bands, is_array, is_banded
from ldm.data.fields.resize import resize_short_side, resize_to_cover
from ldm.data.fields.unreadable import TooLongForJpeg, Unreadable, WrongChannelCount
from ldm.data.sources import Record, SkippedRecord, Source

Format: TypeAlias = Literal["jpg", "png"]
Size: TypeAlias = tuple[int, int]
"""(width, height)."""

KINDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
JPEG_QUALITY = 95
JPEG_MAX_SIDE = 65_500
"""The limit of libjpeg."""


class EncodedImage(NamedTuple):
    """An image as it is stored."""

    kind: str
    data: bytes
    size: Size
    original_size: Size
    is_flat: bool
    """Whether all of its pixels have one colour."""


@dataclass
class EncodedRecord:
    """One record as it is written to a tar."""

    image: EncodedImage
    caption: str
    metadata: dict[str, Any]
    members: dict[str, bytes]


@dataclass
class RecordEncoder:
    """Encode a source's record by its number, or return why it cannot be packed.

    Images become RGB; what `ldm.data.fields.multichannel` reads band by band becomes a `.npy`. A file is
    stored byte by byte unless it is resized, is of another format, has transparent pixels, which show
    `background`, or more than 8 bits per pixel of grey, which other readers clip.
    """

    source: Source
    format: Format | None
    size: int | None
    channels: int
    background: Background = "white"

    def __call__(self, row: int) -> EncodedRecord | SkippedRecord:
        try:
            record = self.source[row]
        except SkippedRecord as skipped:
            return skipped
        name = str(record.metadata.get("name", f"record {row}"))
        if not record.caption.strip():
            return SkippedRecord("with an empty caption", name)
        try:
            return self._encode(record)
        except Unreadable as error:
            return SkippedRecord(error.reason, f"{name} ({error})")

    def _encode(self, record: Record) -> EncodedRecord:
        image = self._encode_image(record.image)
        names = ("width", "height", "original_width", "original_height")
        sizes = dict(zip(names, image.size + image.original_size, strict=True))
        return EncodedRecord(image, record.caption.strip(), {**record.metadata, **sizes}, record.members)

    def _encode_image(self, image: Image.Image | bytes) -> EncodedImage:
        if isinstance(image, bytes):
            return self._encode_bands(image) if is_banded(image, self.channels) else self._encode_file(image)
        if self.channels not in (1, 3):
            raise WrongChannelCount(f"is rendered in RGB, not {self.channels} channels")
        return self._encode_rgb(to_rgb(image, self.background), "png")

    def _encode_file(self, file: bytes) -> EncodedImage:
        rgb = decode(file, background=self.background)
        image = open_image(file)
        kind, plain = KINDS.get(image.format or ""), is_plain(image)
        is_small = self.size is None or min(rgb.size) <= self.size
        if kind is not None and self.format in (None, kind) and plain and is_small:
            return EncodedImage(kind, file, rgb.size, rgb.size, _is_flat(rgb))
        return self._encode_rgb(rgb, "jpg" if plain else "png")

    def _encode_rgb(self, image: Image.Image, default: Format) -> EncodedImage:
        """Encode pixels, resized if they are too large; `default` is the format if none is set."""
        original = image.size
        if self.size is not None and min(original) > self.size:
            image = resize_short_side(image, self.size)
        kind: Format = self.format or default
        if kind == "jpg" and max(image.size) > JPEG_MAX_SIDE:
            if self.format is not None:
                width, height = image.size
                raise TooLongForJpeg(f"{width} x {height} pixels, at most {JPEG_MAX_SIDE:,} per side")
            kind = "png"
        return EncodedImage(kind, _image_file(image, kind), image.size, original, _is_flat(image))

    def _encode_bands(self, file: bytes) -> EncodedImage:
        """Encode an image of several bands; it is stored in 8 bits unless it is kept as it is."""
        x = decode_bands(file, self.channels)
        original = (x.shape[2], x.shape[1])
        if self.size is not None and min(original) > self.size:
            x = resize_to_cover(x, self.size, self.size)
        size = (x.shape[2], x.shape[1])
        data = file if is_array(file) and size == original else to_npy(x.permute(1, 2, 0).numpy())
        return EncodedImage("npy", data, size, original, bool((x == x[:, :1, :1]).all()))


def _is_flat(image: Image.Image) -> bool:
    return all(least == most for least, most in image.getextrema())


def _image_file(image: Image.Image, kind: Format) -> bytes:
    file = BytesIO()
    if kind == "jpg":
        image.save(file, "JPEG", quality=JPEG_QUALITY)
    else:
        image.save(file, "PNG")
    return file.getvalue()
