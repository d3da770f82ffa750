"""Indexing a folder of shards: what is new, what is damaged, and the manifest of them all."""

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

from ldm.data.order.filters import NOTE
from ldm.data.shards.index import Index, build_index, index_path, load_index, read_index, save_index
from ldm.data.shards.manifest import FILE, ShardEntry, write_manifest
from ldm.errors import UserError


@dataclass
class IndexReport:
    """What a folder holds."""

    shards: int = 0
    new: int = 0
    samples: int = 0
    captioned: int = 0
    halves: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    """Why, by shard."""

    def add(self, path: Path, new: bool, problem: str, out: Path | None) -> ShardEntry:
        """Count one shard; its row of the manifest."""
        index = None if problem else read_index(index_path(path, out))
        if index is None:
            self.damaged[path.name] = problem
            return ShardEntry(path.name)
        self.new += new
        self.samples += len(index)
        self.captioned += int(index.head["captioned"])
        self.halves += int(index.head["halves"])
        return ShardEntry.of(path, index)


def index_shards(
    paths: Sequence[Path],
    out: Path | None = None,
    facts: bool = False,
    sums: bool = False,
    score: str = "score",
    leave_out: bool = False,
    num_workers: int = 0,
) -> IndexReport:
    """Index shards of one folder, those that are new or changed, and write their manifest.

    With damaged shards there is no manifest, unless `leave_out`: it then lists them with no samples.
    """
    folders = {path.parent for path in paths}
    if len(folders) > 1:
        raise UserError(f"{paths[0].parent} and {paths[-1].parent}: index one folder after the other")
    folder = out or folders.pop()
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written: give out=FOLDER here and data.index=FOLDER in training")
    made, noted = IndexReport(shards=len(paths)), list[ShardEntry]()
    with parallel_map(num_workers) as mapped:
        task = partial(_index, out=out, facts=facts, sums=sums, score=score)
        found = tqdm(mapped(task, paths), "indexing", len(paths), unit=" shards")
        for path, (new, problem) in zip(paths, found, strict=True):
            noted.append(made.add(path, new, problem, out))
    for note in folder.glob(f"{NOTE}*.npy"):
        note.unlink()
    if made.damaged and not leave_out:
        (folder / FILE).unlink(missing_ok=True)
    else:
        write_manifest(folder, noted)
    return made


def _index(path: Path, out: Path | None, facts: bool, sums: bool, score: str) -> tuple[bool, str]:
    """(whether the index is new, what is wrong)."""
    try:
        state, old = path.stat(), read_index(index_path(path, out))
        known = old and (old.head["shard_bytes"], old.head["mtime"]) == (state.st_size, state.st_mtime_ns)
        facts, sums = facts or bool(old and old.head["facts"]), sums or bool(old and old.head["sums"])
        if known and old and (old.head["facts"], old.head["sums"]) == (facts, sums):
            index = old
        elif facts or sums:
            index = build_index(path, facts, sums, score).changed(source=old.source if old else bytes(8))
            save_index(index, path, out)
        else:
            index = load_index(path, out)
            if read_index(index_path(path, out)) is None:
                save_index(index, path, out)  # for its error
    except (UserError, OSError) as error:
        return False, str(error)
    return not known, describe_problems(path, index)


def describe_problems(path: Path, index: Index) -> str:
    """What img2dataset or pack counted when they wrote the shard, if that is something else."""
    try:
        stated = int(json.loads(path.with_name(f"{path.stem}_stats.json").read_text())["successes"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    found = len(index) + int(index.head["halves"])
    return "" if found == stated else f"{path} holds {found} samples and was written with {stated}"


@contextmanager
def parallel_map(num_workers: int) -> Iterator[Callable[..., Any]]:
    """`map` over this many processes, in order; 0 is this one."""
    if num_workers == 0:
        yield map
        return
    with ProcessPoolExecutor(num_workers) as pool:
        yield partial(pool.map, chunksize=8)
