"""Index a folder of shards, report corrupt ones and write the manifest."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm.data.order.filters import COUNTS_PREFIX
from ldm.data.shards.index import Index, build_index, index_path, load_index, read_index, save_index
from ldm.data.shards.manifest import MANIFEST_FILE, ShardEntry, write_manifest
from ldm.errors import UserError


@dataclass
class IndexReport:
    """Counts of a folder's shards and samples, and its corrupt shards."""

    shards: int = 0
    new: int = 0
    """Shards whose index is new."""
    samples: int = 0
    captioned: int = 0
    without_image: int = 0
    corrupt: dict[str, str] = field(default_factory=dict)
    """The problem of each corrupt shard, by file name."""

    def add(self, path: Path, is_new: bool, problem: str, out: Path | None) -> ShardEntry:
        """Count one shard and return its row of the manifest."""
        index = None if problem else read_index(index_path(path, out))
        if index is None:
            self.corrupt[path.name] = problem
            return ShardEntry(path.name)
        self.new += is_new
        self.samples += len(index)
        self.captioned += int(index.header["captioned"])
        self.without_image += int(index.header["without_image"])
        return ShardEntry.from_index(path, index)


def index_shards(
    paths: Sequence[Path],
    out: Path | None = None,
    metadata: bool = False,
    checksums: bool = False,
    score: str = "score",
    leave_out: bool = False,
    num_workers: int = 0,
) -> IndexReport:
    """Index the new and changed shards of one folder and write the folder's manifest.

    If shards are corrupt, no manifest is written, unless `leave_out`: it then lists them with no samples.
    """
    folders = {path.parent for path in paths}
    if len(folders) > 1:
        raise UserError(f"shards in {paths[0].parent} and {paths[-1].parent}: index one folder at a time")
    folder = out or folders.pop()
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written: give out=FOLDER here and data.index=FOLDER in training")
    report, entries = IndexReport(shards=len(paths)), list[ShardEntry]()
    with parallel_map(num_workers) as map_shards:
        task = partial(_update_index, out=out, metadata=metadata, checksums=checksums, score=score)
        results = tqdm(map_shards(task, paths), "indexing", len(paths), unit=" shards")
        for path, (is_new, problem) in zip(paths, results, strict=True):
            entries.append(report.add(path, is_new, problem, out))
    for counts in folder.glob(f"{COUNTS_PREFIX}*.npy"):
        counts.unlink()
    if report.corrupt and not leave_out:
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
    else:
        write_manifest(folder, entries)
    return report


def _update_index(
    path: Path, out: Path | None, metadata: bool, checksums: bool, score: str
) -> tuple[bool, str]:
    """Return (whether the index is new, what is wrong with the shard, or "")."""
    try:
        state, old = path.stat(), read_index(index_path(path, out))
        is_current = old and (old.header["shard_bytes"], old.header["mtime"]) == (
            state.st_size,
            state.st_mtime_ns,
        )
        metadata = metadata or bool(old and old.header["has_metadata"])
        checksums = checksums or bool(old and old.header["has_checksums"])
        options = (metadata, checksums)
        if is_current and old and (old.header["has_metadata"], old.header["has_checksums"]) == options:
            index = old
        elif metadata or checksums:
            source = old.source if old else bytes(8)
            index = build_index(path, metadata, checksums, score).with_header(source=source)
            save_index(index, path, out)
        else:
            index = load_index(path, out)
            if read_index(index_path(path, out)) is None:
                save_index(index, path, out)  # raises the error that load_index ignores
    except (UserError, OSError) as error:
        return False, str(error)
    return not is_current, describe_count_mismatch(path, index)


def describe_count_mismatch(path: Path, index: Index) -> str:
    """Compare with the count in `_stats.json`, written by img2dataset or pack; return "" if they agree."""
    try:
        expected = int(json.loads(path.with_name(f"{path.stem}_stats.json").read_text())["successes"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    count = len(index) + int(index.header["without_image"])
    return "" if count == expected else f"{path} holds {count} samples and was written with {expected}"


@contextmanager
def parallel_map(num_workers: int) -> Iterator[Callable[..., Any]]:
    """Yield a `map` over this many processes that keeps the order; 0 maps in this process."""
    if num_workers == 0:
        yield map
        return
    with ProcessPoolExecutor(num_workers) as pool:
        yield partial(pool.map, chunksize=8)
