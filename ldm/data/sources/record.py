"""One captioned image on its way into a shard."""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from PIL import Image


@dataclass
class Record:
    """A image, its caption and whatever else is known of it.

    `image` is a drawn image, or the bytes of a image file, which are kept as they are unless a resize
    is needed. `metadata` holds plain JSON values and lands in the sample's `.json`; reports use its
    `name`. `members` are files that become members of the sample as they are, by kind: `cls`, `seg.png`,
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


class SkippedRecord(Exception):
    """A source's record that cannot be packed: `reason` is the report's heading, `name` stands under it."""

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(reason, name)
        self.reason = reason
        self.name = name
