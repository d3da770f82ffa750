"""Index a folder of shards, report corrupt ones and write the manifest."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm.data.prepare.pool import parallel_map
from ldm.data.shards.index import SCORE, Index, build_index, index_path, load_index, read_index, save_index
from ldm.data.shards.manifest import MANIFEST_FILE, ShardEntry, write_manifest
from ldm.data.shards.remote import Cache
from ldm.errors import UserError, WriteError


@dataclass
class IndexReport:
    """Counts of a folder's shards and samples, and its corrupt shards."""

    shards: int = 0
    new: int = 0
    """Shards whose index is new."""
    samples: int = 0
    captioned: int = 0
    without_image: int = 0
    without_size: int | None = None
    """Samples whose json has no width or height; None if the metadata of no shard was read."""
    without_score: int | None = None
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
        if index.header["has_metadata"]:
            sides = np.minimum(index.rows["width"], index.rows["height"])
            self.without_size = (self.without_size or 0) + int((sides == 0).sum())
            self.without_score = (self.without_score or 0) + int(np.isnan(index.rows["score"]).sum())
        return ShardEntry.from_index(path, index)


def index_shards(
    paths: Sequence[Path],
    out: Path | None = None,
    metadata: bool = False,
    checksums: bool = False,
    score: str | None = None,
    leave_out: bool = False,
    num_workers: int = 0,
    cache: Cache | None = None,
) -> IndexReport:
    """Index the new and changed shards of one folder and write the folder's manifest.

    Remote shards, in `cache`, are fetched one at a time, those whose size has not changed only if needed.

    `metadata` reads sizes and scores, `score` those under another key of the json; an index that lacks them
    is built again. None keeps the key of an earlier index. If shards are corrupt, no manifest is written,
    unless `leave_out`: it then lists them with no samples.
    """
    folders = {path.parent for path in paths}
    if len(folders) > 1:
        raise UserError(f"shards in {paths[0].parent} and {paths[-1].parent}: index one folder at a time")
    folder = out or folders.pop()
    remote = cache if cache is not None and cache.is_remote(paths[0]) else None
    if not os.access(folder, os.W_OK) or (remote and out is None):
        raise UserError(f"{folder} cannot be written: give out=FOLDER here and data.index=FOLDER in training")
    report, entries = IndexReport(shards=len(paths)), list[ShardEntry]()
    update = partial(_update_remote_index, cache=remote) if remote else _update_index
    task = partial(update, out=out, metadata=metadata, checksums=checksums, score=score)
    with parallel_map(task, num_workers) as map_shards:
        results = tqdm(map_shards(paths), "indexing", len(paths), unit=" shards")
        for path, (is_new, problem) in zip(paths, results, strict=True):
            entries.append(report.add(path, is_new, problem, out))
    if report.corrupt and not leave_out:
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
    else:
        write_manifest(folder, entries)
    return report


def _update_index(
    path: Path, out: Path | None, metadata: bool, checksums: bool, score: str | None
) -> tuple[bool, str]:
    """Return (whether the index is new, what is wrong with the shard, or "")."""
    try:
        state, old = path.stat(), read_index(index_path(path, out))
        is_unchanged = old is not None and (old.header["shard_bytes"], old.header["mtime"]) == (
            state.st_size,
            state.st_mtime_ns,
        )
        score = _wanted_score(old, metadata, score)
        had_checksums = old is not None and old.checksums is not None
        is_current = is_unchanged and _has_all(old, score, checksums)
        if is_current and old:
            index = old
        elif score or checksums or had_checksums:
            index = _rebuild(path, old, score, checksums or had_checksums, is_unchanged)
            save_index(index, path, out)
        else:
            index = load_index(path, out)
            if read_index(index_path(path, out)) is None:
                save_index(index, path, out)  # raises the error that load_index ignores
    except WriteError:
        raise  # says nothing about the shard
    except (UserError, OSError) as error:
        return False, str(error)
    return not is_current, describe_count_mismatch(path, index)


def _update_remote_index(
    path: Path, out: Path, metadata: bool, checksums: bool, score: str | None, cache: Cache
) -> tuple[bool, str]:
    """Do the same for a remote shard, which is fetched unless its index has everything and its size."""
    old = read_index(index_path(path, out))
    try:
        is_unchanged = old is not None and cache.size(path) == int(old.header["shard_bytes"])
        if is_unchanged and _has_all(old, _wanted_score(old, metadata, score), checksums):
            return False, ""
        with cache.temporary_copy(path):
            if old is not None and is_unchanged:
                os.utime(path, ns=(int(old.header["mtime"]), int(old.header["mtime"])))
            is_new, problem = _update_index(path, out, metadata, checksums, score)
    except WriteError:
        raise  # says nothing about the shard
    except (UserError, OSError) as error:
        return False, str(error)
    if problem:
        index_path(path, out).unlink(missing_ok=True)  # so that the next call reports it again
    return is_new, problem


def _wanted_score(old: Index | None, metadata: bool, score: str | None) -> str | None:
    """Return the json's key of the score: as given, of the earlier index, or the default; None for none."""
    stored = old.score if old and old.header["has_metadata"] else None
    return score or stored or (SCORE if metadata else None)


def _has_all(index: Index | None, score: str | None, checksums: bool) -> bool:
    """Return whether an index has the metadata with this score, or none for None, and checksums if wanted."""
    if index is None:
        return False
    stored = index.score if index.header["has_metadata"] else None
    return score == stored and (index.checksums is not None or not checksums)


def _rebuild(path: Path, old: Index | None, score: str | None, checksums: bool, is_unchanged: bool) -> Index:
    """Build an index again; an unchanged shard keeps its checksums, by which later damage is found."""
    if old is None or old.checksums is None or not is_unchanged:
        source = old.source if old else bytes(8)
        return build_index(path, score, checksums).with_header(source=source)
    index = build_index(path, score).with_header(source=old.source, has_checksums=1)
    return replace(index, checksums=old.checksums)


def describe_count_mismatch(path: Path, index: Index) -> str:
    """Compare with the count in `_stats.json`, written by img2dataset or pack; return "" if they agree."""
    try:
        expected = int(json.loads(path.with_name(f"{path.stem}_stats.json").read_text())["successes"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    count = len(index) + int(index.header["without_image"])
    return "" if count == expected else f"{path} holds {count} samples and was written with {expected}"
