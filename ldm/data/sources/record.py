"""Captioned images to be packed, and the interface of their sources."""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from PIL import Image


@dataclass
class Record:
    """An image with its caption and metadata.

    `image` is a rendered image, or the bytes of an image file, which are stored as they are unless it is
    resized or converted. `metadata` holds plain JSON values for the sample's `.json`; reports use its `name`.
    `members` are files to store with the sample, by kind: `cls`, `seg.png`, `mask.png`, `depth.png`.
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


class SkippedRecord(Exception):
    """A record that cannot be packed; reports list its `name` under `reason`."""

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(reason, name)
        self.reason = reason
        self.name = name
