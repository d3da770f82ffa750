"""Where the members of a shard lie: `00000.index.npy` beside `00000.tar`.

An index is one structured array with a row a sample: its `key`, then an (offset, size) for each kind of
member (`jpg`, `txt`, ...); offset 0 means that the sample lacks it. Reading a member is then one `pread`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ldm.data.atomic import replacing
from ldm.errors import UserError

BLOCK = 512
END_PADDING = 2 * BLOCK + 10240
"""Two zero blocks end a tar; writers then pad to a record of 10240 bytes."""

SPAN = np.dtype([("offset", "<u8"), ("size", "<u8")])
_PAX_PATH = re.compile(rb"\d+ path=([^\n]*)\n")


def index_path(shard: Path) -> Path:
    """The index's file of a shard."""
    return shard.with_suffix(".index.npy")


def load_index(shard: Path) -> np.ndarray:
    """A shard's index, memory-mapped; if none fits, built, and written beside where the folder allows."""
    try:
        index = np.load(index_path(shard), mmap_mode="r").view(np.ndarray)
        if fits(index, shard.stat().st_size):
            return index
    except (OSError, ValueError):
        pass  # no index yet, or a file that is none
    index = build_index(shard)
    try:
        save_index(index, shard)
    except OSError:
        pass  # a read-only folder: the index lives in memory
    return index


def save_index(index: np.ndarray, shard: Path) -> None:
    """Write the index beside its shard, at once."""
    with replacing(index_path(shard)) as temporary, open(temporary, "wb") as file:
        np.save(file, index)


def fits(index: np.ndarray, shard_bytes: int) -> bool:
    """Whether an index can be that of a tar of this many bytes: it ends just behind the last member."""
    ends = [int((index[kind]["offset"] + index[kind]["size"]).max(initial=0)) for kind in kinds(index)]
    return 0 < shard_bytes - max(ends, default=0) <= END_PADDING + BLOCK


def kinds(index: np.ndarray) -> tuple[str, ...]:
    """The kinds of members in an index, `jpg` and so on."""
    assert index.dtype.names is not None
    return index.dtype.names[1:]


def build_index(shard: Path) -> np.ndarray:
    """Walk the headers of a tar; members whose names agree up to the first dot make one sample."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    for name, offset, size in walk(shard):
        folder, slash, file = name.rpartition("/")
        stem, _, kind = file.partition(".")
        if not kind:
            continue
        members = samples.setdefault(folder + slash + stem, {})
        if members.setdefault(kind.lower(), (offset, size)) != (offset, size):
            raise UserError(f"{shard} holds two members named {name}: remove one and pack the shard again")
    columns = sorted({kind for members in samples.values() for kind in members})
    width = max((len(key.encode()) for key in samples), default=1)
    index = np.zeros(len(samples), [("key", f"S{width}"), *((kind, SPAN) for kind in columns)])
    for row, (key, members) in enumerate(samples.items()):
        index[row] = (key.encode(), *(members.get(kind, (0, 0)) for kind in columns))
    return index


def walk(shard: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every file in a tar, by its 512-byte headers alone."""
    descriptor = os.open(shard, os.O_RDONLY)
    try:
        yield from _walk(descriptor, shard)
    finally:
        os.close(descriptor)


def _walk(descriptor: int, shard: Path) -> Iterator[tuple[str, int, int]]:
    offset, long_name = 0, b""
    while True:
        header = os.pread(descriptor, BLOCK, offset)
        if header.count(0) == BLOCK:
            return
        size = _size(header)
        data = offset + BLOCK
        if size is None:  # past the end of what was cut, too
            raise UserError(f"{shard} is damaged or cut at byte {offset}: fetch or pack this shard again")
        kind = header[156:157]
        if kind == b"L":
            long_name = os.pread(descriptor, size, data).rstrip(b"\0")
        elif kind == b"x":
            found = _PAX_PATH.search(os.pread(descriptor, size, data))
            long_name = found[1] if found else b""
        else:
            if kind in (b"0", b"\0"):
                yield (long_name or _name(header)).decode(errors="replace"), data, size
            long_name = b""
        offset = data + -(-size // BLOCK) * BLOCK


def _size(header: bytes) -> int | None:
    """The size in a header, None where it is no header: its check sum tells."""
    try:
        stated = int(header[148:156].split(b"\0")[0].strip() or b"0", 8)
        size = int(header[124:136].split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return None
    actual = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    return size if len(header) == BLOCK and stated == actual else None


def _name(header: bytes) -> bytes:
    name, prefix = header[:100].rstrip(b"\0"), b""
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].rstrip(b"\0")
    return prefix + b"/" + name if prefix else name
