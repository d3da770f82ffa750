"""One record of a source as it goes into a shard: reduced, kept as it is, or written anew."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, TypeAlias

from PIL import Image

from ldm.data.fields.arrays import npy
from ldm.data.fields.decode import Unreadable, cover, decode, resize_short_side, to_rgb
from ldm.data.fields.multichannel import WrongChannelCount, bands, is_array, is_banded
from ldm.data.sources import Record, SkippedRecord, Source

Format: TypeAlias = Literal["jpg", "png"]
Size: TypeAlias = tuple[int, int]
"""(width, height)."""

KINDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
JPEG_QUALITY = 95


@dataclass
class EncodedRecord:
    """One record as it goes into a tar."""

    kind: str
    image: bytes
    caption: str
    metadata: dict[str, Any]
    members: dict[str, bytes]


@dataclass
class RecordEncoder:
    """A source's record by its number, encoded, or why it cannot be.

    Images become RGB; what `ldm.data.fields.multichannel` reads band by band becomes a `.npy`.
    """

    source: Source
    format: Format | None
    size: int | None
    channels: int

    def __call__(self, row: int) -> EncodedRecord | SkippedRecord:
        try:
            record = self.source[row]
        except SkippedRecord as unusable:
            return unusable
        name = str(record.metadata.get("name", f"record {row}"))
        if not record.caption.strip():
            return SkippedRecord("with an empty caption", name)
        try:
            return self._encode(record)
        except WrongChannelCount as error:
            return SkippedRecord("of other channels", f"{name} ({error})")
        except Unreadable as error:
            return SkippedRecord("unreadable", f"{name} ({error})")

    def _encode(self, record: Record) -> EncodedRecord:
        given = record.image
        if isinstance(given, Image.Image):
            if self.channels not in (1, 3):
                raise WrongChannelCount(f"is drawn in RGB, not {self.channels}")
            kind, data, size, full = self._image(to_rgb(given), None)
        elif is_banded(given, self.channels):
            kind, data, size, full = self._array(given)
        else:
            kind, data, size, full = self._image(decode(given), given)
        names = ("width", "height", "original_width", "original_height")
        sizes = dict(zip(names, size + full, strict=True))
        return EncodedRecord(kind, data, record.caption.strip(), {**sizes, **record.metadata}, record.members)

    def _image(self, picture: Image.Image, file: bytes | None) -> tuple[str, bytes, Size, Size]:
        """(kind, bytes, size, size before) of a image, which was read from a file or drawn."""
        full = picture.size
        if self.size is not None and min(full) > self.size:
            picture = resize_short_side(picture, self.size)
        if file is not None and picture.size == full and self._keeps(_kind(file)):
            return _kind(file), file, full, full
        kind = self.format or ("png" if file is None else "jpg")
        return kind, _file(picture, kind), picture.size, full

    def _array(self, file: bytes) -> tuple[str, bytes, Size, Size]:
        """The same of a file of bands: 8 bits where it is not kept."""
        x = bands(file, self.channels)
        full = (x.shape[2], x.shape[1])
        if self.size is not None and min(full) > self.size:
            x = cover(x, self.size, self.size)
        size = (x.shape[2], x.shape[1])
        data = file if is_array(file) and size == full else npy(x.permute(1, 2, 0).numpy())
        return "npy", data, size, full

    def _keeps(self, kind: str) -> bool:
        return kind == self.format if self.format else kind in KINDS.values()


def _kind(data: bytes) -> str:
    with Image.open(BytesIO(data)) as image:
        return KINDS.get(image.format or "", "")


def _file(picture: Image.Image, kind: str) -> bytes:
    file = BytesIO()
    if kind == "jpg":
        picture.save(file, "JPEG", quality=JPEG_QUALITY)
    else:
        picture.save(file, "PNG")
    return file.getvalue()
