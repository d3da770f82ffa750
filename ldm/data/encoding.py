"""Records as they go into a shard: a picture's file, its caption, what is known of it and lies beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, TypeAlias

from PIL import Image

from ldm.data.decode import Unreadable, decode, resize_short_side, to_rgb
from ldm.data.sources import Record, Source, Unusable
from ldm.data.sources.record import MAPS

Format: TypeAlias = Literal["jpg", "png"]

KINDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
JPEG_QUALITY = 95


@dataclass
class Encoded:
    """One record as it goes into a tar."""

    kind: str
    image: bytes
    caption: str
    metadata: dict[str, Any]
    members: Mapping[str, bytes]


@dataclass
class Encoder:
    """A source's records by number, encoded; `write_shards` tells what of."""

    source: Source
    format: Format | None
    size: int | None

    def __call__(self, row: int) -> Encoded | Unusable:
        try:
            record = self.source[row]
        except Unusable as unusable:
            return unusable
        name = str(record.metadata.get("name", f"record {row}"))
        if not record.caption.strip():
            return Unusable("with an empty caption", name)
        if not record.members.get("cls", b"0").strip().isdigit():
            return Unusable("with a .cls that is no number", name)
        try:
            return self._encode(record, name)
        except Unreadable as error:
            return Unusable("unreadable", f"{name} ({error})")

    def _encode(self, record: Record, name: str) -> Encoded | Unusable:
        given = record.image
        picture = to_rgb(given) if isinstance(given, Image.Image) else decode(given)
        full = picture.size
        if self.size is not None and min(full) > self.size:
            picture = resize_short_side(picture, self.size)
        if isinstance(given, bytes) and picture.size == full and self._keeps(_kind(given)):
            kind, data = _kind(given), given
        else:
            kind = self.format or ("jpg" if isinstance(given, bytes) else "png")
            data = _file(picture, kind)
        members = {}
        for beside, own in record.members.items():
            fitting = _fitting(own, full, picture.size) if beside in MAPS else own
            if fitting is None:
                return Unusable(f"with a .{beside} of another size than the picture", name)
            members[beside] = fitting
        sizes = dict(
            zip(("width", "height", "original_width", "original_height"), picture.size + full, strict=True)
        )
        # a side-car may know of an earlier size than the file's, and never the one that it has now
        now = {"width": picture.width, "height": picture.height}
        return Encoded(kind, data, record.caption.strip(), {**sizes, **record.metadata, **now}, members)

    def _keeps(self, kind: str) -> bool:
        return kind == self.format if self.format else kind in KINDS.values()


def _kind(data: bytes) -> str:
    with Image.open(BytesIO(data)) as image:
        return KINDS.get(image.format or "", "")


def _fitting(data: bytes, full: tuple[int, int], size: tuple[int, int]) -> bytes | None:
    """A map of a picture of `full` size, reduced as the picture was; None where it is of another size."""
    try:
        image = Image.open(BytesIO(data))
        if image.size != full:
            return None
        return data if size == full else _file(image.resize(size, Image.Resampling.NEAREST), "png")
    except (OSError, SyntaxError) as error:
        raise Unreadable(f"its map: {error}") from error


def _file(picture: Image.Image, kind: str) -> bytes:
    file = BytesIO()
    if kind == "jpg":
        picture.save(file, "JPEG", quality=JPEG_QUALITY)
    else:
        picture.save(file, "PNG")
    return file.getvalue()
