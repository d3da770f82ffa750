"""Read every byte of a data set and report the problems of each shard."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm.atomic import write_file
from ldm.data.fields.captions import MAX_CHARACTERS, clean_caption
from ldm.data.fields.decode import decode_pixels
from ldm.data.fields.multichannel import array_size, is_array
from ldm.data.fields.unreadable import Unreadable
from ldm.data.latents import LatentHeader, read_header
from ldm.data.prepare.index_shards import describe_count_mismatch
from ldm.data.prepare.pool import parallel_map
from ldm.data.shards.index import NO_CAPTION, build_index, index_path, read_index
from ldm.data.shards.manifest import read_manifest
from ldm.data.shards.metadata import parse_json
from ldm.data.shards.reader import BadSample, Sample, Shard
from ldm.data.shards.remote import Cache
from ldm.data.shards.tar import IMAGES
from ldm.errors import UserError, WriteError

ERRORS = (
    "unreachable shard",
    "corrupt shard",
    "wrong count",
    "changed since it was indexed",
    "unreadable image",
    "unusable latents or text embeddings",
)
"""Findings to fix; the others only inform: captions that are missing, empty, not UTF-8, or too long, and json
that cannot be read."""


@dataclass
class VerifyReport:
    """Counts of one shard or several, and the findings in them."""

    shards: int = 0
    samples: int = 0
    bytes: int = 0
    findings: dict[str, list[str]] = field(default_factory=dict)
    """Where each kind of finding occurs."""

    def add_finding(self, kind: str, location: str) -> None:
        """Add one finding."""
        self.findings.setdefault(kind, []).append(location)

    def merge(self, other: "VerifyReport") -> None:
        """Add the counts and findings of another report."""
        self.shards += other.shards
        self.samples += other.samples
        self.bytes += other.bytes
        for kind, locations in other.findings.items():
            self.findings.setdefault(kind, []).extend(locations)

    @property
    def num_errors(self) -> int:
        """Number of findings to be fixed."""
        return sum(len(locations) for kind, locations in self.findings.items() if kind in ERRORS)


def verify(
    paths: Sequence[Path],
    index_folder: Path | None = None,
    num_workers: int = 0,
    cache: Cache | None = None,
) -> VerifyReport:
    """Read and decode every sample of these shards; remote ones, in `cache`, are fetched one at a time."""
    header = read_header(paths)
    total = VerifyReport()
    task = partial(verify_shard, index_folder=index_folder, header=header, cache=cache)
    with parallel_map(task, num_workers) as map_shards:
        for report in tqdm(map_shards(paths), "verifying", len(paths), unit=" shards"):
            total.merge(report)
    return total


def verify_shard(
    path: Path,
    index_folder: Path | None = None,
    header: LatentHeader | None = None,
    cache: Cache | None = None,
) -> VerifyReport:
    """Check one shard: its tar, its index and manifest, its counts, and every sample."""
    if cache is None:
        return _verify_local_shard(path, index_folder, header)
    try:
        with cache.temporary_copy(path):
            return _verify_local_shard(path, index_folder, header)
    except WriteError:
        raise  # says nothing about the shard
    except (UserError, OSError) as error:
        report = VerifyReport(shards=1)
        report.add_finding("unreachable shard", str(error))
        return report


def _verify_local_shard(path: Path, index_folder: Path | None, header: LatentHeader | None) -> VerifyReport:
    report = VerifyReport(shards=1)
    try:
        report.bytes = path.stat().st_size
        index = build_index(path, checksums=True)
    except (UserError, OSError) as error:
        report.add_finding("corrupt shard", str(error))
        return report
    report.samples = len(index)
    if problem := describe_count_mismatch(path, index):
        report.add_finding("wrong count", problem)
    rows = read_manifest(index_folder or path.parent, [path.name])
    if rows is not None and (int(rows["count"][0]), bytes(rows["hash"][0])) != (len(index), index.hash):
        report.add_finding(
            "wrong count", f"{path} holds {len(index)} samples, its manifest says {int(rows['count'][0])}"
        )
    old = read_index(index_path(path, index_folder))
    shard = Shard(path, index=index)
    if old is not None and old.hash != index.hash:
        report.add_finding("changed since it was indexed", f"{path} holds other members")
    elif old is not None and old.checksums is not None and index.checksums is not None:
        for row in np.flatnonzero((old.checksums != index.checksums) & (old.checksums != 0)).tolist():
            report.add_finding("changed since it was indexed", f"sample number {row} of {path}")
    if without_image := int(index.header["without_image"]):
        report.add_finding("without an image (left out)", f"{without_image} of {path}")
    for row in range(len(index)):
        _verify_sample(shard, row, header, report)
    return report


def _verify_sample(shard: Shard, row: int, header: LatentHeader | None, report: VerifyReport) -> None:
    try:
        sample = shard.sample(row)
    except BadSample:
        return  # reported by its checksum
    if header is None:
        _verify_image(sample, report)
    else:
        try:
            for read in header.fields(seed=0):
                read(sample, 0)
        except BadSample as error:
            report.add_finding("unusable latents or text embeddings", str(error))
    location = f"{sample.key} in {sample.shard}"
    if "json" in sample.members and not parse_json(sample.members["json"]):
        report.add_finding("with a .json that is no JSON object, or empty", location)
    data = sample.members.get("txt")
    if int(shard.index.rows["caption"][row]) == NO_CAPTION:
        report.add_finding("without a caption", location)
    elif data is not None:
        text = bytes(data).decode(errors="replace")
        if not clean_caption(text):
            report.add_finding("with an empty caption", location)
        if "\ufffd" in text:
            report.add_finding("with a caption that is not UTF-8", location)
        if len(text) > MAX_CHARACTERS:
            report.add_finding(f"with a caption cut at {MAX_CHARACTERS:,} characters", location)


def _verify_image(sample: Sample, report: VerifyReport) -> None:
    data = sample.read(next(kind for kind in IMAGES if kind in sample.members))
    try:
        if is_array(data):
            array_size(data)
        else:
            decode_pixels(data)
    except Unreadable as error:
        report.add_finding("unreadable image", f"{sample.key} in {sample.shard} ({error})")


def write_report(report: VerifyReport, path: Path) -> None:
    """Write the counts and all findings as JSON."""
    counts = {"shards": report.shards, "samples": report.samples, "bytes": report.bytes}
    write_file(path, json.dumps({**counts, **report.findings}, indent=1, ensure_ascii=False) + "\n")
