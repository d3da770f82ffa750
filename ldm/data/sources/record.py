"""One captioned picture on its way into a shard."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from PIL import Image

MAPS = ("seg.png", "mask.png", "depth.png")
"""Kinds of members that are maps of the picture, of its upright size."""


@dataclass
class Record:
    """A picture, its caption and whatever else is known of it.

    `image` is a drawn picture, or the bytes of a picture file, which are kept as they are unless a resize
    is needed. `metadata` holds plain JSON values and lands in the sample's `.json`; reports use its
    `name`. `members` holds what else goes beside the picture, by kind: `cls`, and `seg.png`, `mask.png` and
    `depth.png` of the upright picture's size.
    """

    image: Image.Image | bytes
    caption: str
    metadata: dict[str, Any] = field(default_factory=dict)
    members: Mapping[str, bytes] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """Records by number; reading one may raise `Unusable`."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Record: ...


class Unusable(Exception):
    """A source's record that cannot be packed: `reason` is the report's heading, `name` stands under it."""

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(reason, name)
        self.reason = reason
        self.name = name
