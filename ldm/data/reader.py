"""Open shards, and what a user may call a set of them."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand
from tqdm import tqdm

from ldm.data.index import kinds, load_index
from ldm.errors import UserError

PACK = "`python -m ldm.cli.pack source=folder source.path=PICTURES out=FOLDER`"


class Shard:
    """One open tar, its members read by offset."""

    def __init__(self, path: Path) -> None:
        index = load_index(path)
        self.path = path
        self.kinds = kinds(index)
        self._keys = index["key"]
        self._offsets = {kind: index[kind]["offset"] for kind in self.kinds}
        self._sizes = {kind: index[kind]["size"] for kind in self.kinds}
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def key(self, row: int) -> str:
        """The sample's name."""
        return self._keys[row].decode()

    def has(self, row: int, kind: str) -> bool:
        """Whether the sample has a member of this kind."""
        return kind in self._offsets and bool(self._offsets[kind][row])

    def read(self, row: int, kind: str) -> bytes:
        """The bytes of one member."""
        if not self.has(row, kind):
            raise UserError(f"{self.path} has no .{kind} for sample {self.key(row)}: pack this shard again")
        size = int(self._sizes[kind][row])
        data = os.pread(self._descriptor, size, int(self._offsets[kind][row]))
        if len(data) != size:
            raise UserError(f"{self.path} ends inside sample {self.key(row)}: fetch or pack this shard again")
        return data


class Shards:
    """Shards by number, the last few used kept open."""

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], max_open: int = 64) -> None:
        self.paths = list(paths)
        self.counts = np.asarray(counts, np.int64)
        self._max_open = max_open
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Shard:
        if number not in self._open:
            self._open[number] = Shard(self.paths[number])
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # another process opens its own files

    @property
    def manifest(self) -> str:
        """A hash of the shards' names and counts: what an order of samples depends on."""
        lines = "".join(f"{p.name} {n}\n" for p, n in zip(self.paths, self.counts, strict=True))
        return blake2b(lines.encode(), digest_size=16).hexdigest()


def open_shards(spec: str | Sequence[str]) -> Shards:
    """The shards that a folder, a brace pattern or a list of either names, with an index for each.

    Raises UserError where one of them is missing or all are empty.
    """
    paths = find_shards(spec)
    counts = [len(load_index(path)) for path in tqdm(paths, "reading shard indexes", delay=2)]
    if not sum(counts):
        raise UserError(f"the {len(paths)} shards of {spec} hold no samples: write some with {PACK}")
    return Shards(paths, counts)


def find_shards(spec: str | Sequence[str]) -> list[Path]:
    """The paths of the shards; UserError names the first that is missing."""
    paths = [path for one in ([spec] if isinstance(spec, str) else spec) for path in _expand(one)]
    for path in paths:
        if not path.is_file():
            raise UserError(f"there is no shard {path}: mend data.shards, or write shards with {PACK}")
    return paths


def _expand(spec: str) -> list[Path]:
    if not Path(spec).is_dir():
        return [Path(path).expanduser() for path in braceexpand(spec)]
    paths = sorted(Path(spec).glob("*.tar"))
    if not paths:
        raise UserError(f"there are no shards (*.tar) in {spec}: write some with {PACK}")
    return paths
