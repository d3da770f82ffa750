"""Reading every byte of a data set, and saying by shard what is wrong with it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm.data.fields.captions import LONGEST, clean
from ldm.data.fields.decode import Unreadable, pixels
from ldm.data.fields.multichannel import array_size, is_array
from ldm.data.latents import LatentHeader, read_header
from ldm.data.prepare.index_shards import describe_problems, parallel_map
from ldm.data.shards.index import NO_CAPTION, build_index, index_path, read_index
from ldm.data.shards.manifest import read_manifest
from ldm.data.shards.reader import BadSample, Sample, Shard
from ldm.data.shards.tar import IMAGES
from ldm.errors import UserError

WRONG = (
    "damaged shard",
    "wrong count",
    "changed since it was indexed",
    "unreadable image",
    "unreadable moments",
)
"""What must be mended; all else is worth knowing: captions that are missing, empty, not UTF-8, very long."""


@dataclass
class VerifyReport:
    """What one shard or many hold, and what is wrong: names by kind."""

    shards: int = 0
    samples: int = 0
    bytes: int = 0
    found: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, name: str) -> None:
        """One more of a kind."""
        self.found.setdefault(kind, []).append(name)

    def add(self, other: "Checked") -> None:
        """Take in another shard's."""
        self.shards += other.shards
        self.samples += other.samples
        self.bytes += other.bytes
        for kind, names in other.found.items():
            self.found.setdefault(kind, []).extend(names)

    @property
    def wrong(self) -> int:
        """How many things must be mended."""
        return sum(len(names) for kind, names in self.found.items() if kind in WRONG)


def verify(paths: Sequence[Path], index_folder: Path | None = None, num_workers: int = 0) -> VerifyReport:
    """Every sample of these shards, read and decoded."""
    header = read_header(paths)
    total = VerifyReport()
    with parallel_map(num_workers) as mapped:
        task = partial(verify_shard, index_folder=index_folder, header=header)
        for checked in tqdm(mapped(task, paths), "verifying", len(paths), unit=" shards"):
            total.add(checked)
    return total


def verify_shard(
    path: Path, index_folder: Path | None = None, header: LatentHeader | None = None
) -> VerifyReport:
    """One shard: its tar, its index and manifest, its counts, and every sample."""
    checked = VerifyReport(shards=1)
    try:
        checked.bytes = path.stat().st_size
        index = build_index(path, sums=True)
    except (UserError, OSError) as error:
        checked.note("damaged shard", str(error))
        return checked
    checked.samples = len(index)
    if problem := describe_problems(path, index):
        checked.note("wrong count", problem)
    rows = read_manifest(index_folder or path.parent, [path.name])
    if rows is not None and (int(rows["count"][0]), bytes(rows["hash"][0])) != (len(index), index.hash):
        checked.note(
            "wrong count", f"{path} holds {len(index)} samples, its manifest {int(rows['count'][0])}"
        )
    old = read_index(index_path(path, index_folder))
    shard = Shard(path, index=index)
    if old is not None and old.hash != index.hash:
        checked.note("changed since it was indexed", f"{path}: it holds other members")
    elif old is not None and old.sums is not None and index.sums is not None:
        for row in np.flatnonzero((old.sums != index.sums) & (old.sums != 0)).tolist():
            checked.note("changed since it was indexed", f"sample number {row} of {path}")
    if halves := int(index.head["halves"]):
        checked.note("without a image, left out", f"{halves} of {path}")
    for row in range(len(index)):
        _sample(shard, row, header, checked)
    return checked


def _sample(shard: Shard, row: int, header: LatentHeader | None, checked: VerifyReport) -> None:
    try:
        sample = shard.sample(row)
    except BadSample:
        return  # its sum is noted
    if header is None:
        _image(sample, checked)
    else:
        try:
            for read in header.readers(seed=0):
                read(sample, 0)
        except BadSample as error:
            checked.note("unreadable moments", str(error))
    name = f"{sample.key} in {sample.shard}"
    text = sample.members.get("txt")
    if int(shard.index.rows["caption"][row]) == NO_CAPTION:
        checked.note("without a caption", name)
    elif text is not None:
        decoded = bytes(text).decode(errors="replace")
        if not clean(decoded):
            checked.note("with an empty caption", name)
        if "\ufffd" in decoded:
            checked.note("with a caption that is not UTF-8", name)
        if len(decoded) > LONGEST:
            checked.note(f"with a caption cut at {LONGEST:,} characters", name)


def _image(sample: Sample, checked: VerifyReport) -> None:
    data = sample.read(next(kind for kind in IMAGES if kind in sample.members))
    try:
        if is_array(data):
            array_size(data)
        else:
            pixels(data)
    except Unreadable as error:
        checked.note("unreadable image", f"{sample.key} in {sample.shard} ({error})")


def write_report(checked: VerifyReport, path: Path) -> None:
    """All that was found, as JSON."""
    fields = {"shards": checked.shards, "samples": checked.samples, "bytes": checked.bytes}
    path.write_text(json.dumps({**fields, **checked.found}, indent=1, ensure_ascii=False) + "\n")
