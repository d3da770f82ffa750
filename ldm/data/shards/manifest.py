"""The manifest of a folder of shards: `manifest.npy`, one row per shard, so that a start reads no index.

Half a million shards are 25 MB, memory-mapped; no Python object per shard is created.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from ldm.atomic import write_atomically
from ldm.data.shards.index import Index

MANIFEST_FILE = "manifest.npy"
COUNTS_PREFIX = ".plan-"
"""Of files with the numbers of samples that pass a filter; they hold for one manifest."""


class ShardNames(Sequence[Path]):
    """The paths of a folder's shards, stored as the bytes of their names."""

    def __init__(self, folder: Path, names: np.ndarray) -> None:
        self.folder = folder
        self.names = names

    @classmethod
    def from_names(cls, folder: Path, names: Sequence[str]) -> "ShardNames":
        """Return the paths of these file names."""
        return cls(folder, np.array([name.encode() for name in names]))

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, number: int) -> Path: ...
    @overload
    def __getitem__(self, number: slice) -> "ShardNames": ...
    def __getitem__(self, number: int | slice) -> "Path | ShardNames":
        if isinstance(number, slice):
            return ShardNames(self.folder, self.names[number])
        return self.folder / self.names[number].decode()


def file_names(paths: Sequence[Path]) -> list[str]:
    """Return the names without their folders."""
    if isinstance(paths, ShardNames):
        return [name.decode() for name in paths.names.tolist()]
    return [path.name for path in paths]


class ShardEntry(NamedTuple):
    """A shard's row of the manifest; a corrupt shard that is left out has only a name."""

    name: str
    samples: int = 0
    captioned: int = 0
    hash: bytes = bytes(8)

    @classmethod
    def from_index(cls, shard: Path, index: Index) -> "ShardEntry":
        """Return the entry of an indexed shard, without a reference to the memory-mapped index."""
        return cls(shard.name, len(index), int(index.header["captioned"]), index.hash)


def write_manifest(folder: Path, entries: Sequence[ShardEntry]) -> None:
    """Write the manifest of a folder's shards, and remove the numbers that were counted by the former one."""
    width = max((len(entry.name.encode()) for entry in entries), default=1)
    dtype = [("name", f"S{width}"), ("count", "<u4"), ("captioned", "<u4"), ("hash", "V8")]
    table = np.array([(e.name.encode(), e.samples, e.captioned, e.hash) for e in sorted(entries)], dtype)
    with write_atomically(folder / MANIFEST_FILE) as temporary, open(temporary, "wb") as file:
        np.save(file, table)
    for counts in folder.glob(f"{COUNTS_PREFIX}*.npy"):
        counts.unlink(missing_ok=True)


def read_manifest(folder: Path, names: Sequence[str]) -> np.ndarray | None:
    """Return the rows (name, count, captioned, hash) of these files; None if any of them is not listed."""
    table = _load_table(folder)
    if table is None or not len(table):
        return None
    keys = np.array([name.encode() for name in names])
    if len(keys) == len(table) and bool((table["name"] == keys).all()):
        return table
    rows = np.searchsorted(table["name"], keys).clip(max=len(table) - 1)
    return table[rows] if bool((table["name"][rows] == keys).all()) else None


def listed_names(folder: Path) -> list[str]:
    """Return the names that the folder's manifest lists."""
    table = _load_table(folder)
    return [] if table is None else [name.decode() for name in table["name"].tolist()]


def _load_table(folder: Path) -> np.ndarray | None:
    try:
        table = np.load(folder / MANIFEST_FILE, mmap_mode="r").view(np.ndarray)
    except (OSError, ValueError):
        return None
    return table if table.dtype.names == ("name", "count", "captioned", "hash") else None
