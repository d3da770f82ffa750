"""Captioned images to be packed, and the interfaces of their sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from ldm.data.sources.text import printable

OWN_KEYS = ("key", "caption", "name", "width", "height", "original_width", "original_height")
"""The keys of a sample's json that pack writes itself."""


@dataclass
class Record:
    """An image with its caption and metadata.

    `image` is a rendered image, or the bytes of an image file, which are stored as they are unless it is
    resized or converted. `metadata` is added to the sample's `.json`; reports use its `name`, and the other
    `OWN_KEYS` are not taken from it. `members` are files to store with the sample, by kind: `cls`, `seg.png`,
    `mask.png`, `depth.png`.
    """

    image: Image.Image | bytes
    caption: str
    metadata: dict[str, Any] = field(default_factory=dict)
    members: dict[str, bytes] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """Records by number; reading one may raise `SkippedRecord`."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Record: ...


@runtime_checkable
class FileSource(Source, Protocol):
    """A source whose records are read from files, which may change between two runs of pack."""

    @property
    def ignored(self) -> Mapping[str, Sequence[str]]:
        """Names of the files, or columns, that belong to no record, by reason."""

    def version(self, row: int, /) -> str:
        """Return a text that changes with the files and the cells that a record is read from."""


class SkippedRecord(Exception):
    """A record that cannot be packed; reports list its `name` under `reason`."""

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(reason, name)
        self.reason = reason
        self.name = printable(name)


def source_metadata(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of the record `name`, with a user's fields.

    A field named as one of `OWN_KEYS` gets the prefix `source_`: the width of another version of the image
    must not replace that of the stored one.
    """
    metadata = {"name": printable(name)}
    for key, value in fields.items():
        new_key = key
        while new_key in OWN_KEYS or (new_key != key and new_key in fields):
            new_key = f"source_{new_key}"
        metadata[new_key] = value
    return metadata
