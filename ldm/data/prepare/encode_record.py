"""Encode one record of a source for a shard: kept as it is, resized, or converted."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, TypeAlias

from PIL import Image

from ldm.data.fields.arrays import to_npy
from ldm.data.fields.decode import Unreadable, decode, resize_short_side, resize_to_cover, to_rgb
from ldm.data.fields.multichannel import WrongChannelCount, decode_bands, is_array, is_banded
from ldm.data.sources import Record, SkippedRecord, Source

Format: TypeAlias = Literal["jpg", "png"]
Size: TypeAlias = tuple[int, int]
"""(width, height)."""

KINDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
JPEG_QUALITY = 95


@dataclass
class EncodedRecord:
    """One record as it is written to a tar."""

    kind: str
    image: bytes
    caption: str
    metadata: dict[str, Any]
    members: dict[str, bytes]


@dataclass
class RecordEncoder:
    """Encode a source's record by its number, or return why it cannot be packed.

    Images become RGB; what `ldm.data.fields.multichannel` reads band by band becomes a `.npy`.
    """

    source: Source
    format: Format | None
    size: int | None
    channels: int

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
        except WrongChannelCount as error:
            return SkippedRecord("with another number of channels", f"{name} ({error})")
        except Unreadable as error:
            return SkippedRecord("unreadable", f"{name} ({error})")

    def _encode(self, record: Record) -> EncodedRecord:
        image = record.image
        if isinstance(image, Image.Image):
            if self.channels not in (1, 3):
                raise WrongChannelCount(f"is rendered in RGB, not {self.channels} channels")
            kind, data, size, original = self._encode_image(to_rgb(image), None)
        elif is_banded(image, self.channels):
            kind, data, size, original = self._encode_array(image)
        else:
            kind, data, size, original = self._encode_image(decode(image), image)
        names = ("width", "height", "original_width", "original_height")
        sizes = dict(zip(names, size + original, strict=True))
        return EncodedRecord(kind, data, record.caption.strip(), {**sizes, **record.metadata}, record.members)

    def _encode_image(self, image: Image.Image, file: bytes | None) -> tuple[str, bytes, Size, Size]:
        """Return (kind, bytes, size, original size) of an image, decoded from `file` or rendered."""
        original = image.size
        if self.size is not None and min(original) > self.size:
            image = resize_short_side(image, self.size)
        if file is not None and image.size == original and self._can_keep(_kind(file)):
            return _kind(file), file, original, original
        kind = self.format or ("png" if file is None else "jpg")
        return kind, _image_file(image, kind), image.size, original

    def _encode_array(self, file: bytes) -> tuple[str, bytes, Size, Size]:
        """Return the same of a file of bands; it is stored in 8 bits unless it is kept as it is."""
        x = decode_bands(file, self.channels)
        original = (x.shape[2], x.shape[1])
        if self.size is not None and min(original) > self.size:
            x = resize_to_cover(x, self.size, self.size)
        size = (x.shape[2], x.shape[1])
        data = file if is_array(file) and size == original else to_npy(x.permute(1, 2, 0).numpy())
        return "npy", data, size, original

    def _can_keep(self, kind: str) -> bool:
        return kind == self.format if self.format else kind in KINDS.values()


def _kind(data: bytes) -> str:
    with Image.open(BytesIO(data)) as image:
        return KINDS.get(image.format or "", "")


def _image_file(image: Image.Image, kind: str) -> bytes:
    file = BytesIO()
    if kind == "jpg":
        image.save(file, "JPEG", quality=JPEG_QUALITY)
    else:
        image.save(file, "PNG")
    return file.getvalue()
