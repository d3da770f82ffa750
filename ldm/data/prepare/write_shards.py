"""Write shards in img2dataset's layout: `00000.tar` of `000000000.jpg .json .txt`, with an index.

Shard n holds the `shard_size` records from number n * shard_size on, without those skipped. It is complete
once its `_stats.json` states how many, and the hash of the files that they were read from: a later run writes
the shards that are missing, incomplete, or whose files have changed.
"""

import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm.atomic import write_atomically
from ldm.data.fields.colours import Background
from ldm.data.prepare.encode_record import EncodedRecord, Format, RecordEncoder
from ldm.data.prepare.pack_folder import (
    claim_folder,
    describe_source,
    hash_inputs,
    load_stats,
    remove_shards,
    reopen_shard,
    save_stats,
    write_json,
)
from ldm.data.prepare.pack_report import PackReport
from ldm.data.prepare.pool import parallel_map
from ldm.data.prepare.sample_json import sample_json
from ldm.data.shards.index import SCORE, build_index, load_index, save_index
from ldm.data.shards.manifest import ShardEntry, write_manifest
from ldm.data.sources import FileSource, SkippedRecord, Source
from ldm.data.sources.text import printable
from ldm.errors import UserError

LEFT_OUT = "with metadata left out, since JSON cannot store it (such as NaN)"
FLAT = "of one flat colour"


def write_shards(
    source: Source,
    out: Path,
    shard_size: int = 1000,
    format: Format | None = None,
    size: int | None = None,
    num_workers: int = 0,
    channels: int = 3,
    background: Background = "white",
) -> PackReport:
    """Pack a source into shards in `out`; a call with the settings of an earlier one brings it up to date.

    Shards that an earlier call finished are kept, unless the files or cells that their records are read from
    have changed; an image that is added or removed moves all that follow it. Shards beyond the last are
    removed.

    Images whose short side exceeds `size` are resized to it. A file that needs no change is stored byte by
    byte; others are converted to `format`, by default png for rendered images and for files that have
    transparent pixels, which show `background`, or deep ones; jpg for other files. Arrays, and all files if
    `channels` is neither 3 nor 1, are read as `channels` bands and stored as `.npy`.
    """
    if not len(source):
        raise UserError(f"{describe_source(source)} holds no records: there is nothing to pack")
    settings = {"shard_size": shard_size, "format": format, "size": size, "channels": channels}
    claim_folder(out, source, {**settings, "background": background})
    report = PackReport()
    if isinstance(source, FileSource):
        report.add_ignored(source.ignored)
    with (
        parallel_map(RecordEncoder(source, format, size, channels, background), num_workers) as encode,
        tqdm(total=len(source), desc="packing", unit=" images", smoothing=0.05) as bar,
    ):
        for first in range(0, len(source), shard_size):
            rows = range(first, min(first + shard_size, len(source)))
            path, digits = out / f"{first // shard_size:05d}.tar", len(str(shard_size - 1))
            _update_shard(path, source, rows, encode, digits, report, bar)
    report.removed_shards = remove_shards(out, -(-len(source) // shard_size))
    write_manifest(out, [ShardEntry.from_index(path, load_index(path)) for path in sorted(out.glob("*.tar"))])
    write_json(out / "report.json", asdict(report))
    return report


def _update_shard(
    path: Path,
    source: Source,
    rows: range,
    encode: Callable[[range], Iterator[EncodedRecord | SkippedRecord]],
    digits: int,
    report: PackReport,
    bar: tqdm,
) -> None:
    """Pack the records of these rows, unless an earlier run did, and count them."""
    stats, inputs = load_stats(path), hash_inputs(source, rows)
    if stats is None or stats.get("inputs", "") != inputs:
        report.changed_shards += stats is not None
        stats = _pack_shard(path, _count_items(encode(rows), bar.update), digits, inputs)
    else:
        bar.initial += len(rows)  # packed earlier: the speed does not count them
        bar.update(len(rows))
    report.add_shard(stats["successes"], stats["skipped"], stats.get("notes", {}))


def write_shard(
    path: Path,
    samples: Iterable[tuple[str, Mapping[str, bytes]]],
    source: bytes = bytes(8),
    score: str = SCORE,
) -> int:
    """Write one tar of (key, {kind: bytes}) and its index, atomically; return the number of samples.

    The index includes the metadata of the `.json` members, with the number under `score`, checksums, and
    `source`, the hash of the shard that the samples were made from.
    """
    count = 0
    with write_atomically(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for key, members in samples:
                count += 1
                for kind, data in sorted(members.items()):
                    info = tarfile.TarInfo(f"{key}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, BytesIO(data))
        save_index(build_index(temporary, score, checksums=True).with_header(source=source), path)
    return count


def _count_items(
    items: Iterable[EncodedRecord | SkippedRecord], count: Callable[[], object]
) -> Iterator[EncodedRecord | SkippedRecord]:
    for item in items:
        yield item
        count()


def _pack_shard(
    path: Path, encoded: Iterator[EncodedRecord | SkippedRecord], digits: int, inputs: str
) -> dict[str, Any]:
    """Write one shard, then its `_stats.json`."""
    skipped, notes = dict[str, list[str]](), dict[str, list[str]]()

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for row, item in enumerate(encoded):
            key = f"{path.stem}{row:0{max(digits, 4)}d}"
            try:
                yield key, _members(key, item, notes)
            except SkippedRecord as record:
                skipped.setdefault(record.reason, []).append(record.name)

    reopen_shard(path)
    stats = {"successes": write_shard(path, samples()), "skipped": skipped, "notes": notes, "inputs": inputs}
    save_stats(path, stats)
    return stats


def _members(key: str, item: EncodedRecord | SkippedRecord, notes: dict[str, list[str]]) -> dict[str, bytes]:
    """Return the members of a sample; raise SkippedRecord if it cannot be packed."""
    if isinstance(item, SkippedRecord):
        raise item
    name = printable(str(item.metadata.get("name", key)))
    metadata, left_out = sample_json(key, item)
    if left_out:
        notes.setdefault(LEFT_OUT, []).append(f"{name} ({', '.join(left_out)})")
    if item.image.is_flat:
        notes.setdefault(FLAT, []).append(name)
    return {item.image.kind: item.image.data, "txt": item.caption.encode(), "json": metadata, **item.members}
