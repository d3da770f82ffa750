"""Where the samples of a shard lie and what is known of them: `00000.index` beside `00000.tar`.

An index is a head of 64 bytes, 16 bytes a sample, and by choice 4 more for a check sum of each; it is
memory-mapped. A sample is one run of the tar, its headers included, so that one read fetches all its members
with their names.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from ldm.atomic import replacing
from ldm.data.shards.tar import BLOCK, IMAGES, MOMENTS, CorruptTar, DuplicateMember, Member, samples, walk
from ldm.errors import UserError

ROW = np.dtype(
    [
        ("block", "<u4"),  # where the sample's run begins, in blocks of 512 bytes
        ("blocks", "<u4"),  # its length
        ("width", "<u2"),  # of the image; 0 is unknown
        ("height", "<u2"),
        ("caption", "<u2"),  # bytes of the caption, at most 65534; NO_CAPTION where it is absent
        ("score", "<f2"),  # of the image; nan is unknown
    ]
)
HEAD = np.dtype(
    [
        ("magic", "S4"),
        ("version", "<u4"),
        ("count", "<u8"),
        ("shard_bytes", "<u8"),
        ("mtime", "<u8"),  # of the shard, in ns
        ("captioned", "<u4"),  # samples with a caption
        ("halves", "<u4"),  # samples without a image, which are left out
        ("facts", "<u4"),  # 1: sizes and scores were read
        ("sums", "<u4"),  # 1: check sums follow the rows
        ("hash", "V8"),  # of the names and places of all members
        ("source", "V8"),  # of latents: the hash of the images they were made from
    ]
)
MAGIC, VERSION = b"ldmi", 1
NO_CAPTION = 65535
WHOLE = 1 << 26
"""A longer run is not read as a whole, and has no check sum: its members lie apart."""

INDEX = "`python -m ldm.cli.index shards=FOLDER`"


@dataclass
class Index:
    """The samples of one shard."""

    head: np.void
    rows: np.ndarray
    """One ROW a sample."""
    sums: np.ndarray | None
    """crc32 of each sample's run; 0 for none."""

    def __len__(self) -> int:
        return len(self.rows)

    def __bool__(self) -> bool:
        return True  # an empty shard has an index, too

    @property
    def hash(self) -> bytes:
        """Tells shards of other names, sizes or places apart."""
        return bytes(self.head["hash"])

    @property
    def source(self) -> bytes:
        """The hash of the shard that these samples were made from; zeros where that is not noted."""
        return bytes(self.head["source"])

    def changed(self, **fields: Any) -> "Index":
        """With some fields of the head replaced."""
        head = np.array([self.head])
        for name, value in fields.items():
            head[name] = np.void(value) if isinstance(value, bytes) else value
        return Index(head[0], self.rows, self.sums)


def captioned(rows: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Which samples have a caption that is not empty."""
    return (rows["caption"] > 0) & (rows["caption"] < NO_CAPTION)


def index_path(shard: Path, folder: Path | None = None) -> Path:
    """The index's file of a shard: beside it, or in a folder of its own."""
    return (folder or shard.parent) / f"{shard.stem}.index"


def load_index(shard: Path, folder: Path | None = None) -> Index:
    """A shard's index, memory-mapped; if none fits, built, and written where the folder allows.

    Raises UserError where the shard is damaged, FileNotFoundError where there is none.
    """
    state = shard.stat()
    old = read_index(index_path(shard, folder))
    if old and (old.head["shard_bytes"], old.head["mtime"]) == (state.st_size, state.st_mtime_ns):
        return old
    index = build_index(shard)
    if old and old.hash == index.hash:  # the same shard, copied: what was known of it holds
        index = old.changed(mtime=state.st_mtime_ns)
    elif old:
        index = build_index(shard, facts=bool(old.head["facts"]), sums=bool(old.head["sums"]))
    try:
        save_index(index, shard, folder)
    except OSError:
        pass  # a read-only folder: the index lives in memory
    return index


def read_index(path: Path) -> Index | None:
    """An index as it was written; None where there is none or it is no whole one."""
    try:
        head = np.fromfile(path, HEAD, 1)
        if not len(head) or head["magic"][0] != MAGIC or head["version"][0] != VERSION:
            return None
        count, sums = int(head["count"][0]), int(head["sums"][0])
        if os.path.getsize(path) != HEAD.itemsize + count * (ROW.itemsize + 4 * sums):
            return None
        if count == 0:
            return Index(head[0], np.zeros(0, ROW), np.zeros(0, "<u4") if sums else None)
        rows = np.memmap(path, ROW, "r", HEAD.itemsize, (count,)).view(np.ndarray)
        behind = HEAD.itemsize + count * ROW.itemsize
        table = np.memmap(path, "<u4", "r", behind, (count,)).view(np.ndarray) if sums else None
        return Index(head[0], rows, table)
    except OSError:
        return None


def save_index(index: Index, shard: Path, folder: Path | None = None) -> None:
    """Write a shard's index, at once."""
    with replacing(index_path(shard, folder)) as temporary, open(temporary, "wb") as file:
        file.write(np.array(index.head).tobytes())
        file.write(index.rows.tobytes())
        if index.sums is not None:
            file.write(index.sums.tobytes())


def build_index(shard: Path, facts: bool = False, sums: bool = False, score: str = "score") -> Index:
    """Walk the headers of a tar.

    `facts` reads each sample's `.json` for `width`, `height` and the number under `score`; `sums` reads every
    byte. Raises UserError where the tar is damaged or holds two files of one name.
    """
    try:
        found = samples(walk(shard))
    except CorruptTar as error:
        raise UserError(f"{shard} is {error}: fetch or pack this shard again") from error
    except DuplicateMember as error:
        raise UserError(f"{shard} holds {error}: remove one and pack the shard again") from error
    whole = [group for group in found.values() if _has_image(group)]
    descriptor = os.open(shard, os.O_RDONLY)
    try:
        rows = np.array([_row(group, descriptor, score if facts else None) for group in whole], ROW)
        table = np.array([_sum(row, descriptor) for row in rows], "<u4") if sums else None
    finally:
        os.close(descriptor)
    state = shard.stat()
    head = np.zeros(1, HEAD)
    head["magic"], head["version"], head["count"] = MAGIC, VERSION, len(rows)
    head["shard_bytes"], head["mtime"] = state.st_size, state.st_mtime_ns
    head["captioned"], head["halves"] = captioned(rows).sum(), len(found) - len(whole)
    head["facts"], head["sums"] = facts, sums
    head["hash"] = np.void(_hash(member for group in found.values() for member in group.values()))
    return Index(head[0], rows, table)


def _hash(members: Iterable[Member]) -> bytes:
    lines = "".join(f"{member.name}\0{member.data}\0{member.size}\n" for member in members)
    return blake2b(lines.encode(), digest_size=8).digest()


def _has_image(group: Mapping[str, Member]) -> bool:
    return MOMENTS in group or any(kind in group for kind in IMAGES)


def _row(group: Mapping[str, Member], descriptor: int, score: str | None) -> tuple[Any, ...]:
    members = list(group.values())  # as they lie
    width, height, number = 0, 0, float("nan")
    if score and "json" in group:
        member = group["json"]
        width, height, number = _facts(os.pread(descriptor, member.size, member.data), score)
    caption = NO_CAPTION
    if "txt" in group:
        member = group["txt"]
        nan = member.size == 3 and os.pread(descriptor, 3, member.data).lower() == b"nan"
        caption = NO_CAPTION if nan else min(member.size, NO_CAPTION - 1)
    start = members[0].start
    return start // BLOCK, (members[-1].end - start) // BLOCK, width, height, caption, number


def _facts(text: bytes, score: str) -> tuple[int, int, float]:
    """Width, height and score in a sample's `.json`, as far as they are there."""
    try:
        known = json.loads(text)
        width, height = (min(int(known.get(name) or 0), 65535) for name in ("width", "height"))
        return width, height, float(known.get(score, "nan"))
    except (ValueError, TypeError, AttributeError):
        return 0, 0, float("nan")


def _sum(row: np.void, descriptor: int) -> int:
    length = int(row["blocks"]) * BLOCK
    if length > WHOLE:
        return 0
    return zlib.crc32(os.pread(descriptor, length, int(row["block"]) * BLOCK)) or 1
