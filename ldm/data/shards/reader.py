"""Find and open shards, and read their samples by number."""

import os
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ldm.data.shards.index import INDEX_COMMAND, MAX_RUN, Index, load_index
from ldm.data.shards.local import (
    PACK_COMMAND,
    IndexFolder,
    common_folder,
    find_local_shards,
    pair_with_indexes,
)
from ldm.data.shards.manifest import ShardNames, file_names, read_manifest
from ldm.data.shards.remote import Cache
from ldm.data.shards.tar import BLOCK, CorruptTar, ReadAt, group_samples, read_members, read_plain_sample
from ldm.data.shards.transfer import is_remote
from ldm.errors import UserError


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


class Shards:
    """Shards by number; the most recently used ones are kept open.

    Args:
        paths: of the tars; of remote shards, their local copies.
        counts: number of samples per shard.
        manifest_rows: the shards' rows of a manifest, if there is one; all samples of a shard that differs
            from its row are bad.
        index_folders: by the folder of the tars, that of their indexes, if they are not beside the tars.
        cache: fetches remote shards; it leaves local ones as they are.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        counts: Sequence[int] | np.ndarray,
        manifest_rows: np.ndarray | None = None,
        index_folders: Mapping[Path, Path] | None = None,
        cache: Cache | None = None,
        max_open: int = 64,
    ) -> None:
        self.paths = paths
        self.counts = np.asarray(counts, np.int64)
        self.manifest_rows, self.index_folders, self.cache = manifest_rows, index_folders or {}, cache
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

    def load_index(self, number: int) -> Index:
        """Return the index of a shard, without fetching the shard; UserError if it cannot be read alone."""
        path = self.paths[number]
        folder = self.index_folders.get(path.parent)
        if self.cache is None or not self.cache.is_remote(path):
            return load_index(path, folder)
        expected = None if self.manifest_rows is None else bytes(self.manifest_rows["hash"][number])
        return self.cache.load_index(path, expected, folder)

    def fetch_indexes(self) -> None:
        """Copy the indexes of all remote shards, several at a time."""
        if self.cache is not None:
            with ThreadPoolExecutor(16) as pool:
                numbers = range(len(self))
                for _ in tqdm(pool.map(self.load_index, numbers), "fetching indexes", len(numbers), delay=2):
                    pass

    def index_folder(self, number: int) -> Path:
        """Return the folder of a shard's index."""
        folder = self.paths[number].parent
        return self.index_folders.get(folder, folder)

    def _open_shard(self, number: int) -> Shard | str:
        """Open a shard, or return why that is not possible; a copy of a remote one may be outdated."""
        shard = self._try_to_open(number)
        path = self.paths[number]
        if isinstance(shard, str) and self.cache is not None and self.cache.is_remote(path):
            path.unlink(missing_ok=True)
            shard = self._try_to_open(number)
            if isinstance(shard, str):
                path.unlink(missing_ok=True)
                return self.cache.name_urls(shard)
        return shard

    def _try_to_open(self, number: int) -> Shard | str:
        path, rows = self.paths[number], self.manifest_rows
        folder = self.index_folders.get(path.parent)
        try:
            if self.cache is not None:
                self.cache.fetch(path, folder)
            shard = Shard(path, folder)
        except (OSError, UserError) as error:
            return f"the shard {path} cannot be read ({error})"
        has_changed = rows is not None and shard.index.hash != bytes(rows["hash"][number])
        if not has_changed and len(shard) == self.counts[number]:
            return shard
        return (
            f"{path} with {len(shard)} samples is not the shard of {self.counts[number]} samples that "
            f"was indexed: fetch it again, or index the folder again with {INDEX_COMMAND}"
        )

    def select(self, number: int) -> "Shards":
        """Return one of the shards as a set of its own."""
        rows = None if self.manifest_rows is None else self.manifest_rows[number : number + 1]
        paths, counts = [self.paths[number]], self.counts[number : number + 1]
        return Shards(paths, counts, rows, self.index_folders, self.cache)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # another process opens its own files

    @cached_property
    def manifest_hash(self) -> str:
        """Hash of the shards' names and counts, which determine the order of samples."""
        digest = blake2b(digest_size=16)
        for name, count in zip(file_names(self.paths), self.counts.tolist(), strict=True):
            digest.update(f"{name} {count}\n".encode())
        return digest.hexdigest()


def open_shards(
    spec: str | Sequence[str], index_folder: IndexFolder = None, cache: Cache | None = None
) -> Shards:
    """Return the shards named by a folder, a brace pattern, a URL or command, or a list of these.

    Local ones without an index are indexed; remote ones need a manifest and are fetched on first use.

    Args:
        cache: where remote shards are stored on this machine.

    Raises UserError if a shard is missing or corrupt, or all are empty.
    """
    parts = [_open_part(item, folder, cache) for item, folder in pair_with_indexes(spec, index_folder)]
    shards = parts[0] if len(parts) == 1 else _concatenate(parts, cache)
    if not shards.counts.sum():
        raise UserError(
            f"the {len(shards)} shards of {spec} contain no samples: write some with {PACK_COMMAND}"
        )
    return shards


def _open_part(spec: str, index_folder: Path | None, cache: Cache | None) -> Shards:
    """Return the shards of one item as listed in its manifest; local ones without one, by their indexes."""
    if is_remote(spec):
        folder, rows = _require(cache, spec).read_manifest(spec, index_folder)
        return Shards(
            ShardNames(folder, rows["name"]), rows["count"], rows, _map({folder}, index_folder), cache
        )
    paths = find_local_shards(spec)
    common = common_folder(paths)
    table = None if common is None else read_manifest(index_folder or common, file_names(paths))
    if common is not None and table is not None:
        return Shards(ShardNames(common, table["name"]), table["count"], table, _map({common}, index_folder))
    counts = [len(load_index(path, index_folder)) for path in tqdm(paths, "reading shard indexes", delay=2)]
    return Shards(paths, counts, index_folders=_map({path.parent for path in paths}, index_folder))


def _map(folders: set[Path], index_folder: Path | None) -> dict[Path, Path]:
    return {} if index_folder is None else dict.fromkeys(folders, index_folder)


def _concatenate(parts: Sequence[Shards], cache: Cache | None) -> Shards:
    """Return the shards of all parts, with manifest rows if all parts have them."""
    all_rows = [part.manifest_rows for part in parts if part.manifest_rows is not None]
    return Shards(
        [path for part in parts for path in part.paths],
        np.concatenate([part.counts for part in parts]),
        np.concatenate(all_rows) if len(all_rows) == len(parts) else None,
        {folder: indexes for part in parts for folder, indexes in part.index_folders.items()},
        cache if any(part.cache for part in parts) else None,
    )


def _require(cache: Cache | None, spec: str) -> Cache:
    if cache is None:
        raise UserError(f"{spec} is remote: set data.cache.folder=FOLDER, where its shards are stored here")
    return cache


def find_shards(spec: str | Sequence[str], cache: Cache | None = None) -> Sequence[Path]:
    """Return the paths of the shards, of remote ones those that their copies will have in the cache.

    Raises UserError for a folder without shards, and names the first local shard that is missing.
    """
    parts = [
        _require(cache, part).list_shards(part) if is_remote(part) else find_local_shards(part)
        for part in ([spec] if isinstance(spec, str) else spec)
    ]
    return parts[0] if len(parts) == 1 else [path for part in parts for path in part]
