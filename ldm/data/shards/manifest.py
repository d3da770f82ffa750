"""What a folder of shards holds, in one file: `manifest.npy`, a row a shard, so that a start reads no index.

Half a million shards are 25 MB, memory-mapped; nothing here is a Python object a shard.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from ldm.atomic import replacing
from ldm.data.shards.index import Index

FILE = "manifest.npy"


class ShardNames(Sequence[Path]):
    """The paths of a folder's files, as the bytes of their names."""

    def __init__(self, folder: Path, names: np.ndarray) -> None:
        self.folder = folder
        self.names = names

    @classmethod
    def of(cls, folder: Path, names: Sequence[str]) -> "Names":
        """From texts."""
        return cls(folder, np.array([name.encode() for name in names]))

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, number: int) -> Path: ...
    @overload
    def __getitem__(self, number: slice) -> "Names": ...
    def __getitem__(self, number: int | slice) -> "Path | Names":
        if isinstance(number, slice):
            return ShardNames(self.folder, self.names[number])
        return self.folder / self.names[number].decode()


def file_names(paths: Sequence[Path]) -> list[str]:
    """The names without their folders."""
    if isinstance(paths, ShardNames):
        return [name.decode() for name in paths.names.tolist()]
    return [path.name for path in paths]


class ShardEntry(NamedTuple):
    """A shard's row; of one that is damaged and left out, the name alone."""

    name: str
    samples: int = 0
    captioned: int = 0
    hash: bytes = bytes(8)

    @classmethod
    def of(cls, shard: Path, index: Index) -> "Note":
        """What its index says, without keeping the index open."""
        return cls(shard.name, len(index), int(index.head["captioned"]), index.hash)


def write_manifest(folder: Path, notes: Sequence[ShardEntry]) -> None:
    """Note every shard of the folder."""
    width = max((len(note.name.encode()) for note in notes), default=1)
    kinds = [("name", f"S{width}"), ("count", "<u4"), ("captioned", "<u4"), ("hash", "V8")]
    table = np.array([(n.name.encode(), n.samples, n.captioned, n.hash) for n in sorted(notes)], kinds)
    with replacing(folder / FILE) as temporary, open(temporary, "wb") as file:
        np.save(file, table)


def read_manifest(folder: Path, names: Sequence[str]) -> np.ndarray | None:
    """The rows of these files: name, count, captioned, hash; None where a file or the manifest is missing."""
    table = _load(folder)
    if table is None or not len(table):
        return None
    wanted = np.array([name.encode() for name in names])
    if len(wanted) == len(table) and bool((table["name"] == wanted).all()):
        return table
    places = np.searchsorted(table["name"], wanted).clip(max=len(table) - 1)
    return table[places] if bool((table["name"][places] == wanted).all()) else None


def listed(folder: Path) -> list[str]:
    """The names that the folder's manifest lists."""
    table = _load(folder)
    return [] if table is None else [name.decode() for name in table["name"].tolist()]


def _load(folder: Path) -> np.ndarray | None:
    try:
        table = np.load(folder / FILE, mmap_mode="r").view(np.ndarray)
    except (OSError, ValueError):
        return None
    return table if table.dtype.names == ("name", "count", "captioned", "hash") else None
