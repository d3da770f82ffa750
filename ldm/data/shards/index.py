"""Shard indexes: `00000.index` beside `00000.tar` lists the offset and metadata of each sample.

An index is a header of 64 bytes, 16 bytes per sample, optionally 4 more per sample for a checksum, and
optionally the name of the json's score; it is memory-mapped. A sample is one run of bytes of the tar, its
headers included, so that one read fetches all its members with their names.
"""

import math
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from ldm.atomic import write_atomically
from ldm.data.shards.metadata import parse_json, read_number
from ldm.data.shards.tar import (
    BLOCK,
    IMAGES,
    MOMENTS,
    CorruptTar,
    DuplicateMember,
    Member,
    group_samples,
    walk,
)
from ldm.errors import UserError

ROW_DTYPE = np.dtype(
    [
        ("block", "<u4"),  # start of the sample's run, in blocks of 512 bytes
        ("blocks", "<u4"),  # its length
        ("width", "<u2"),  # of the image, at most 65535; 0: unknown
        ("height", "<u2"),
        ("caption", "<u2"),  # bytes of the caption, at most 65534; NO_CAPTION: missing
        ("score", "<f2"),  # of the image, at most 65504; nan: unknown
    ]
)
HEADER_DTYPE = np.dtype(
    [
        ("magic", "S4"),
        ("version", "<u4"),
        ("count", "<u8"),
        ("shard_bytes", "<u8"),
        ("mtime", "<u8"),  # of the shard, in ns
        ("captioned", "<u4"),  # samples with a caption
        ("without_image", "<u4"),  # samples without an image, which are left out
        ("has_metadata", "<u4"),  # 1: sizes and scores were read; 1 + n: the file ends with SCORE's n bytes
        ("has_checksums", "<u4"),  # 1: checksums follow the rows
        ("hash", "V8"),  # of the names and offsets of all members
        ("source", "V8"),  # of latents: the hash of the images they were encoded from
    ]
)
MAGIC, VERSION = b"ldmi", 1
NO_CAPTION = 65535
SCORE = "score"
"""The json's key of the score, where no other one was named."""
MAX_SCORE = float(np.finfo(np.float16).max)
MAX_RUN = 1 << 26
"""Bytes of the longest run that is read at once. Members of a longer one are read one by one, unchecked."""

INDEX_COMMAND = "`python -m ldm.cli.index shards=FOLDER`"


@dataclass
class Index:
    """The samples of one shard."""

    header: np.void
    rows: np.ndarray
    """One ROW_DTYPE per sample."""
    checksums: np.ndarray | None
    """crc32 of each sample's run; 0: none."""
    score: str = SCORE
    """The json's key under which the scores were read."""

    def __len__(self) -> int:
        return len(self.rows)

    def __bool__(self) -> bool:
        return True  # the index of an empty shard is an index

    @property
    def hash(self) -> bytes:
        """Hash of the names, sizes and offsets of the shard's members."""
        return bytes(self.header["hash"])

    @property
    def content_hash(self) -> bytes:
        """Hash of the shard's members and of their bytes; of the members alone without checksums."""
        if self.checksums is None:
            return self.hash
        return blake2b(self.hash + self.checksums.tobytes(), digest_size=8).digest()

    @property
    def source(self) -> bytes:
        """Hash of the shard that these samples were made from; zeros if not recorded."""
        return bytes(self.header["source"])

    def with_header(self, **fields: Any) -> "Index":
        """Return a copy with some header fields replaced."""
        header = np.array([self.header])
        for name, value in fields.items():
            header[name] = np.void(value) if isinstance(value, bytes) else value
        return Index(header[0], self.rows, self.checksums, self.score)


def has_caption(rows: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Return which rows have a caption that is not empty."""
    return (rows["caption"] > 0) & (rows["caption"] < NO_CAPTION)


def index_path(shard: Path, folder: Path | None = None) -> Path:
    """Return the path of a shard's index: beside it, or in a separate folder."""
    return (folder or shard.parent) / f"{shard.stem}.index"


def load_index(shard: Path, folder: Path | None = None) -> Index:
    """Load a shard's index, memory-mapped; build it, and write it if possible, where none matches the shard.

    Raises UserError if the shard is corrupt, FileNotFoundError if it is missing.
    """
    state = shard.stat()
    old = read_index(index_path(shard, folder))
    if old and (old.header["shard_bytes"], old.header["mtime"]) == (state.st_size, state.st_mtime_ns):
        return old
    index = build_index(shard)
    if old and old.hash == index.hash:  # a copy of the same shard: its metadata and checksums still apply
        index = old.with_header(mtime=state.st_mtime_ns)
    elif old:
        score = old.score if old.header["has_metadata"] else None
        index = build_index(shard, score, bool(old.header["has_checksums"]))
    try:
        save_index(index, shard, folder)
    except OSError:
        pass  # a read-only folder: the index stays in memory
    return index


def read_index(path: Path) -> Index | None:
    """Read an index file; None if it is missing, incomplete or of another format."""
    try:
        header = np.fromfile(path, HEADER_DTYPE, 1)
        if not len(header) or header["magic"][0] != MAGIC or header["version"][0] != VERSION:
            return None
        count, has_checksums = int(header["count"][0]), int(header["has_checksums"][0])
        name_bytes = max(int(header["has_metadata"][0]) - 1, 0)
        end = HEADER_DTYPE.itemsize + count * (ROW_DTYPE.itemsize + 4 * has_checksums)
        if os.path.getsize(path) != end + name_bytes:
            return None
        score = np.fromfile(path, np.uint8, offset=end).tobytes().decode() if name_bytes else SCORE
        if count == 0:
            checksums = np.zeros(0, "<u4") if has_checksums else None
            return Index(header[0], np.zeros(0, ROW_DTYPE), checksums, score)
        rows = np.memmap(path, ROW_DTYPE, "r", HEADER_DTYPE.itemsize, (count,)).view(np.ndarray)
        start = HEADER_DTYPE.itemsize + count * ROW_DTYPE.itemsize
        checksums = np.memmap(path, "<u4", "r", start, (count,)).view(np.ndarray) if has_checksums else None
        return Index(header[0], rows, checksums, score)
    except (OSError, UnicodeDecodeError):
        return None


def save_index(index: Index, shard: Path, folder: Path | None = None) -> None:
    """Write a shard's index atomically."""
    with write_atomically(index_path(shard, folder)) as temporary, open(temporary, "wb") as file:
        file.write(np.array(index.header).tobytes())
        file.write(index.rows.tobytes())
        if index.checksums is not None:
            file.write(index.checksums.tobytes())
        file.write(_score_suffix(index.score) if index.header["has_metadata"] else b"")


def build_index(shard: Path, score: str | None = None, checksums: bool = False) -> Index:
    """Build an index from the headers of a tar.

    `score` also reads `width`, `height` and the number under this key from each sample's `.json`; `checksums`
    reads every byte. Raises UserError if the tar is corrupt or contains two files of the same name.
    """
    try:
        groups = group_samples(walk(shard))
    except CorruptTar as error:
        raise UserError(f"{shard} is {error}: fetch or pack this shard again") from error
    except DuplicateMember as error:
        raise UserError(f"{shard} contains {error}: remove one and pack the shard again") from error
    with_image = [group for group in groups.values() if _has_image(group)]
    descriptor = os.open(shard, os.O_RDONLY)
    try:
        rows = np.array([_index_row(group, descriptor, score) for group in with_image], ROW_DTYPE)
        sums = np.array([_checksum(row, descriptor) for row in rows], "<u4") if checksums else None
    finally:
        os.close(descriptor)
    state = shard.stat()
    header = np.zeros(1, HEADER_DTYPE)
    header["magic"], header["version"], header["count"] = MAGIC, VERSION, len(rows)
    header["shard_bytes"], header["mtime"] = state.st_size, state.st_mtime_ns
    header["captioned"], header["without_image"] = has_caption(rows).sum(), len(groups) - len(with_image)
    header["has_metadata"] = 0 if score is None else 1 + len(_score_suffix(score))
    header["has_checksums"] = checksums
    header["hash"] = np.void(_hash_members(member for group in groups.values() for member in group.values()))
    return Index(header[0], rows, sums, score or SCORE)


def _score_suffix(score: str) -> bytes:
    """Return the bytes of the score's name that an index ends with: none for the usual name."""
    return b"" if score == SCORE else score.encode()


def _hash_members(members: Iterable[Member]) -> bytes:
    lines = "".join(f"{member.name}\0{member.data}\0{member.size}\n" for member in members)
    return blake2b(lines.encode(), digest_size=8).digest()


def _has_image(group: Mapping[str, Member]) -> bool:
    return MOMENTS in group or any(kind in group for kind in IMAGES)


def _index_row(group: Mapping[str, Member], descriptor: int, score: str | None) -> tuple[Any, ...]:
    members = list(group.values())  # in the order of the tar
    width, height, number = 0, 0, float("nan")
    if score and "json" in group:
        member = group["json"]
        width, height, number = _parse_metadata(os.pread(descriptor, member.size, member.data), score)
    caption = NO_CAPTION
    if "txt" in group:
        member = group["txt"]
        is_nan = member.size == 3 and os.pread(descriptor, 3, member.data).lower() == b"nan"
        caption = NO_CAPTION if is_nan else min(member.size, NO_CAPTION - 1)
    start = members[0].start
    return start // BLOCK, (members[-1].end - start) // BLOCK, width, height, caption, number


def _parse_metadata(text: bytes, score: str) -> tuple[int, int, float]:
    """Return width, height and score from a sample's `.json`; each is 0 or nan where it is unknown."""
    metadata = parse_json(text)
    width, height = (read_number(metadata, name) for name in ("width", "height"))
    number = read_number(metadata, score)
    return (
        min(max(int(width or 0), 0), 65535),
        min(max(int(height or 0), 0), 65535),
        math.nan if number is None else min(max(number, -MAX_SCORE), MAX_SCORE),
    )


def _checksum(row: np.void, descriptor: int) -> int:
    length = int(row["blocks"]) * BLOCK
    if length > MAX_RUN:
        return 0
    return zlib.crc32(os.pread(descriptor, length, int(row["block"]) * BLOCK)) or 1
