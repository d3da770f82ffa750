"""Open shards, and what a user may call a set of them."""

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

from ldm.data.shards.index import INDEX, WHOLE, Index, load_index
from ldm.data.shards.manifest import ShardNames, file_names, listed, read_manifest
from ldm.data.shards.tar import BLOCK, CorruptTar, Read, members, plain_sample, samples
from ldm.errors import UserError

PACK = "`python -m ldm.cli.pack source=folder source.path=IMAGES out=FOLDER`"


class BadSample(UserError):
    """One sample that cannot be used; the training stream puts another in its place."""


class Sample(NamedTuple):
    """The members of one sample."""

    shard: Path
    key: str
    members: Mapping[str, bytes]
    """By kind: jpg, txt, ..."""

    def read(self, kind: str) -> bytes:
        """The bytes of a member; BadSample where there is none."""
        if kind not in self.members:
            raise BadSample(f"{self.shard} has no .{kind} for sample {self.key}: pack this shard again")
        return self.members[kind]


class Shard:
    """One open tar, its samples read by offset."""

    def __init__(self, path: Path, index_folder: Path | None = None, index: Index | None = None) -> None:
        self.index: Index = index or load_index(path, index_folder)
        self.path = path
        self._start, self._length = self.index.rows["block"], self.index.rows["blocks"]
        self._sums = self.index.sums
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def __len__(self) -> int:
        return len(self.index)

    def sample(self, row: int) -> Sample:
        """All members of one sample; BadSample where they are not what the index says."""
        start, length = int(self._start[row]) * BLOCK, int(self._length[row]) * BLOCK
        try:
            run = os.pread(self._descriptor, length, start) if length <= WHOLE else None
        except OSError as error:
            raise BadSample(f"{self.path} cannot be read at byte {start}: {error}") from error
        if run is None:  # its members lie far apart
            return self._parted(row, start, start + length, self._pread)
        if len(run) != length:
            raise BadSample(f"{self.path} ends inside sample number {row}: fetch or pack this shard again")
        known = 0 if self._sums is None else int(self._sums[row])
        if known and known != (zlib.crc32(run) or 1):
            raise BadSample(
                f"the bytes of sample number {row} in {self.path} have changed since they were indexed: "
                "fetch or pack this shard again"
            )
        if known and (plain := plain_sample(run)):
            return Sample(self.path, *plain)
        return self._parted(row, start, start + length, lambda at, n: run[at - start : at - start + n])

    def _parted(self, row: int, start: int, end: int, read: Read) -> Sample:
        try:
            found = samples(members(read, start, end))
            key, own = next(iter(found.items()))
            if list(own.values())[-1].end != end:
                raise CorruptTar(start)
        except (ValueError, StopIteration) as error:
            raise BadSample(
                f"sample number {row} of {self.path} is not where its index says: fetch the shard again, "
                f"or index it anew with {INDEX}"
            ) from error
        return Sample(self.path, key, {kind: read(m.data, m.size) for kind, m in own.items()})

    def _pread(self, offset: int, n: int) -> bytes:
        return os.pread(self._descriptor, n, offset)


Fetch: TypeAlias = Callable[[Path], None]
"""Sees to it that a remote shard's file is here; OSError where it cannot be had."""


class Shards:
    """Shards by number, the last few used kept open.

    Args:
        paths: of the tars; of remote ones, where `fetch` puts them.
        counts: samples of each.
        noted: their rows of a manifest, where there is one; a shard that differs from it is bad as a whole.
        index_folder: of the indexes, where they do not lie beside the tars.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        counts: Sequence[int] | np.ndarray,
        noted: np.ndarray | None = None,
        index_folder: Path | None = None,
        fetch: Fetch | None = None,
        max_open: int = 64,
    ) -> None:
        self.paths = paths
        self.counts = np.asarray(counts, np.int64)
        self.noted, self.index_folder, self.fetch = noted, index_folder, fetch
        self._max_open = max_open
        self._open: OrderedDict[int, Shard | str] = OrderedDict()  # or why it cannot be

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, number: int) -> Shard:
        """Raises BadSample where the shard is missing or not what it was when it was indexed."""
        if number not in self._open:
            self._open[number] = self._opened(number)
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        shard = self._open[number]
        if isinstance(shard, str):
            raise BadSample(shard)
        return shard

    def _opened(self, number: int) -> Shard | str:
        path = self.paths[number]
        try:
            if self.fetch is not None:
                self.fetch(path)
            shard = Shard(path, self.index_folder)
            other = self.noted is not None and shard.index.hash != bytes(self.noted["hash"][number])
            if not other and len(shard) == self.counts[number]:
                return shard
            problem = (
                f"{path} holds {len(shard)} samples and is not the shard of {self.counts[number]} that was "
                f"indexed: fetch it again, or index the folder anew with {INDEX}"
            )
        except (OSError, UserError) as error:
            problem = f"the shard {path} cannot be read ({error})"
        if self.fetch is not None:
            path.unlink(missing_ok=True)  # to be fetched again
        return problem

    def only(self, number: int) -> "Shards":
        """One of them as a set of its own."""
        noted = None if self.noted is None else self.noted[number : number + 1]
        paths, counts = [self.paths[number]], self.counts[number : number + 1]
        return Shards(paths, counts, noted, self.index_folder, self.fetch)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # another process opens its own files

    @cached_property
    def manifest(self) -> str:
        """A hash of the shards' names and counts: what an order of samples depends on."""
        digest = blake2b(digest_size=16)
        for name, count in zip(file_names(self.paths), self.counts.tolist(), strict=True):
            digest.update(f"{name} {count}\n".encode())
        return digest.hexdigest()


def open_shards(spec: str | Sequence[str], index_folder: Path | None = None) -> Shards:
    """The shards that a folder, a brace pattern or a list of either names, with an index for each.

    Raises UserError where one of them is missing or damaged, or all are empty.
    """
    paths = find_shards(spec)
    shards = _noted(paths, index_folder)
    if shards is None:
        counts = [len(load_index(p, index_folder)) for p in tqdm(paths, "reading shard indexes", delay=2)]
        shards = Shards(paths, counts, index_folder=index_folder)
    if not shards.counts.sum():
        raise UserError(f"the {len(paths)} shards of {spec} hold no samples: write some with {PACK}")
    return shards


def _noted(paths: Sequence[Path], index_folder: Path | None) -> Shards | None:
    """The shards by their manifest, where one folder's has them all."""
    folder = _one_folder(paths)
    if folder is None:
        return None
    rows = read_manifest(index_folder or folder, file_names(paths))
    if rows is None:
        return None
    return Shards(ShardNames(folder, rows["name"]), rows["count"], rows, index_folder)


def find_shards(spec: str | Sequence[str]) -> Sequence[Path]:
    """The paths of the shards; UserError names the first that is missing."""
    parts = [_expand(one) for one in ([spec] if isinstance(spec, str) else spec)]
    return parts[0] if len(parts) == 1 else [path for part in parts for path in part]


def _expand(spec: str) -> Sequence[Path]:
    folder = Path(spec).expanduser()
    if folder.is_dir():
        names = sorted(name for name in os.listdir(folder) if name.endswith(".tar") and name[0] != ".")
        if not names:
            raise UserError(f"there are no shards (*.tar) in {spec}: write some with {PACK}")
        if lost := sorted(set(listed(folder)) - set(names)):
            raise UserError(
                f"{len(lost)} shards of {spec} are missing, {lost[0]} first: fetch them, or index the folder "
                f"anew with {INDEX}"
            )
        return ShardNames.of(folder, names)
    paths = [Path(path).expanduser() for path in braceexpand(spec)]
    folder_of_all = _one_folder(paths)
    if folder_of_all and read_manifest(folder_of_all, file_names(paths)) is not None:
        return ShardNames.of(folder_of_all, file_names(paths))  # a stat of each would cost more than the rest
    for path in paths:
        if not path.is_file():
            raise UserError(f"there is no shard {path}: mend data.shards, or write shards with {PACK}")
    return paths


def _one_folder(paths: Sequence[Path]) -> Path | None:
    if isinstance(paths, ShardNames):
        return paths.folder
    folders = {path.parent for path in paths}
    return folders.pop() if len(folders) == 1 else None
