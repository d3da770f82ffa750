"""Find and open shards, and read their samples by number."""

import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from braceexpand import braceexpand
from tqdm import tqdm

from ldm.data.shards.index import INDEX_COMMAND, MAX_RUN, Index, load_index
from ldm.data.shards.manifest import ShardNames, file_names, listed_names, read_manifest
from ldm.data.shards.tar import BLOCK, CorruptTar, ReadAt, group_samples, read_members, read_plain_sample
from ldm.errors import UserError

PACK_COMMAND = "`python -m ldm.cli.pack source=folder source.path=IMAGES out=FOLDER`"


class BadSample(UserError):
    """A sample that cannot be used; training replaces it by another."""


class Sample(NamedTuple):
    """The members of one sample."""

    shard: Path
    key: str
    members: Mapping[str, bytes]
    """By extension: jpg, txt, ..."""

    def read(self, kind: str) -> bytes:
        """Return the bytes of the member with this extension; BadSample if there is none."""
        if kind not in self.members:
            raise BadSample(f"{self.shard} has no .{kind} for sample {self.key}: pack this shard again")
        return self.members[kind]


class Shard:
    """One open tar, its samples read by offset."""

    def __init__(self, path: Path, index_folder: Path | None = None, index: Index | None = None) -> None:
        self.index: Index = index or load_index(path, index_folder)
        self.path = path
        self._starts, self._lengths = self.index.rows["block"], self.index.rows["blocks"]
        self._checksums = self.index.checksums
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def __len__(self) -> int:
        return len(self.index)

    def sample(self, row: int) -> Sample:
        """Read all members of one sample; BadSample if they do not match the index."""
        start, length = int(self._starts[row]) * BLOCK, int(self._lengths[row]) * BLOCK
        try:
            run = os.pread(self._descriptor, length, start) if length <= MAX_RUN else None
        except OSError as error:
            raise BadSample(f"{self.path} cannot be read at byte {start}: {error}") from error
        if run is None:  # its members are far apart
            return self._parse_sample(row, start, start + length, self._read_at)
        if len(run) != length:
            raise BadSample(
                f"{self.path} is truncated in sample number {row}: fetch or pack this shard again"
            )
        checksum = 0 if self._checksums is None else int(self._checksums[row])
        if checksum and checksum != (zlib.crc32(run) or 1):
            raise BadSample(
                f"the checksum of sample number {row} in {self.path} is wrong, its bytes have changed since "
                "it was indexed: fetch or pack this shard again"
            )
        if checksum and (plain := read_plain_sample(run)):
            return Sample(self.path, *plain)
        return self._parse_sample(
            row, start, start + length, lambda offset, n: run[offset - start : offset - start + n]
        )

    def _parse_sample(self, row: int, start: int, end: int, read: ReadAt) -> Sample:
        try:
            groups = group_samples(read_members(read, start, end))
            key, members = next(iter(groups.items()))
            if list(members.values())[-1].end != end:
                raise CorruptTar(start)
        except (ValueError, StopIteration) as error:
            raise BadSample(
                f"sample number {row} of {self.path} is not where its index says: fetch the shard again, "
                f"or index it again with {INDEX_COMMAND}"
            ) from error
        return Sample(self.path, key, {kind: read(m.data, m.size) for kind, m in members.items()})

    def _read_at(self, offset: int, n: int) -> bytes:
        return os.pread(self._descriptor, n, offset)


Fetch: TypeAlias = Callable[[Path], None]
"""Makes sure that the local copy of a remote shard exists; raises OSError if it cannot be fetched."""


class Shards:
    """Shards by number; the most recently used ones are kept open.

    Args:
        paths: of the tars; of remote shards, their local copies.
        counts: number of samples per shard.
        manifest_rows: the shards' rows of a manifest, if there is one; all samples of a shard that differs
            from its row are bad.
        index_folder: folder of the indexes, if they are not beside the tars.
        fetch: called before a remote shard is opened.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        counts: Sequence[int] | np.ndarray,
        manifest_rows: np.ndarray | None = None,
        index_folder: Path | None = None,
        fetch: Fetch | None = None,
        max_open: int = 64,
    ) -> None:
        self.paths = paths
        self.counts = np.asarray(counts, np.int64)
        self.manifest_rows, self.index_folder, self.fetch = manifest_rows, index_folder, fetch
        self._max_open = max_open
        self._open: OrderedDict[int, Shard | str] = OrderedDict()  # a shard, or why it cannot be opened

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, number: int) -> Shard:
        """Open a shard; BadSample if it is missing or has changed since it was indexed."""
        if number not in self._open:
            self._open[number] = self._open_shard(number)
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        shard = self._open[number]
        if isinstance(shard, str):
            raise BadSample(shard)
        return shard

    def _open_shard(self, number: int) -> Shard | str:
        path, rows = self.paths[number], self.manifest_rows
        try:
            if self.fetch is not None:
                self.fetch(path)
            shard = Shard(path, self.index_folder)
            has_changed = rows is not None and shard.index.hash != bytes(rows["hash"][number])
            if not has_changed and len(shard) == self.counts[number]:
                return shard
            problem = (
                f"{path} with {len(shard)} samples is not the shard of {self.counts[number]} samples that "
                f"was indexed: fetch it again, or index the folder again with {INDEX_COMMAND}"
            )
        except (OSError, UserError) as error:
            problem = f"the shard {path} cannot be read ({error})"
        if self.fetch is not None:
            path.unlink(missing_ok=True)  # so that it is fetched again
        return problem

    def select(self, number: int) -> "Shards":
        """Return one of the shards as a set of its own."""
        rows = None if self.manifest_rows is None else self.manifest_rows[number : number + 1]
        paths, counts = [self.paths[number]], self.counts[number : number + 1]
        return Shards(paths, counts, rows, self.index_folder, self.fetch)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # another process opens its own files

    @cached_property
    def manifest_hash(self) -> str:
        """Hash of the shards' names and counts, which determine the order of samples."""
        digest = blake2b(digest_size=16)
        for name, count in zip(file_names(self.paths), self.counts.tolist(), strict=True):
            digest.update(f"{name} {count}\n".encode())
        return digest.hexdigest()


def open_shards(spec: str | Sequence[str], index_folder: Path | None = None) -> Shards:
    """Return the shards named by a folder, a brace pattern or a list of either; index those that are not.

    Raises UserError if one of them is missing or corrupt, or all are empty.
    """
    paths = find_shards(spec)
    shards = _open_from_manifest(paths, index_folder)
    if shards is None:
        counts = [len(load_index(p, index_folder)) for p in tqdm(paths, "reading shard indexes", delay=2)]
        shards = Shards(paths, counts, index_folder=index_folder)
    if not shards.counts.sum():
        raise UserError(
            f"the {len(paths)} shards of {spec} contain no samples: write some with {PACK_COMMAND}"
        )
    return shards


def _open_from_manifest(paths: Sequence[Path], index_folder: Path | None) -> Shards | None:
    """Return the shards as listed in their folder's manifest; None if it does not list them all."""
    folder = _common_folder(paths)
    if folder is None:
        return None
    rows = read_manifest(index_folder or folder, file_names(paths))
    if rows is None:
        return None
    return Shards(ShardNames(folder, rows["name"]), rows["count"], rows, index_folder)


def find_shards(spec: str | Sequence[str]) -> Sequence[Path]:
    """Return the paths of the shards; UserError names the first that is missing."""
    parts = [_expand(part) for part in ([spec] if isinstance(spec, str) else spec)]
    return parts[0] if len(parts) == 1 else [path for part in parts for path in part]


def _expand(spec: str) -> Sequence[Path]:
    folder = Path(spec).expanduser()
    if folder.is_dir():
        names = sorted(name for name in os.listdir(folder) if name.endswith(".tar") and name[0] != ".")
        if not names:
            raise UserError(f"there are no shards (*.tar) in {spec}: write some with {PACK_COMMAND}")
        if missing := sorted(set(listed_names(folder)) - set(names)):
            raise UserError(
                f"{len(missing)} shards of {spec} are missing, the first is {missing[0]}: fetch them, or "
                f"index the folder again with {INDEX_COMMAND}"
            )
        return ShardNames.from_names(folder, names)
    paths = [Path(path).expanduser() for path in braceexpand(spec)]
    folder_of_all = _common_folder(paths)
    if folder_of_all and read_manifest(folder_of_all, file_names(paths)) is not None:
        # a stat per shard would cost more than all else
        return ShardNames.from_names(folder_of_all, file_names(paths))
    for path in paths:
        if not path.is_file():
            raise UserError(f"there is no shard {path}: fix data.shards, or write shards with {PACK_COMMAND}")
    return paths


def _common_folder(paths: Sequence[Path]) -> Path | None:
    if isinstance(paths, ShardNames):
        return paths.folder
    folders = {path.parent for path in paths}
    return folders.pop() if len(folders) == 1 else None
