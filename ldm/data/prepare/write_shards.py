"""Write shards in img2dataset's layout: `00000.tar` of `000000000.jpg .json .txt`, with an index.

An interrupted run continues at the first incomplete shard. Shard n holds the `shard_size` records from number
n * shard_size on, without those skipped, and is complete once its `_stats.json` states how many.
"""

import errno
import json
import multiprocessing
import os
import signal
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm.atomic import write_atomically
from ldm.data.prepare.encode_record import EncodedRecord, Format, RecordEncoder
from ldm.data.shards.index import SCORE, build_index, load_index, save_index
from ldm.data.shards.manifest import ShardEntry, write_manifest
from ldm.data.sources import SkippedRecord, Source
from ldm.errors import UserError

NAMES_SHOWN = 5


@dataclass
class PackReport:
    """How many records of a source were packed, and which were skipped and why."""

    packed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of skipped records by reason."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """The first few names by reason; the `_stats.json` of each shard has all of them."""

    def add(self, packed: int, skipped: Mapping[str, Sequence[str]]) -> None:
        """Count one shard."""
        self.packed += packed
        for reason, names in skipped.items():
            self.skipped[reason] = self.skipped.get(reason, 0) + len(names)
            self.names[reason] = [*self.names.get(reason, []), *names][:NAMES_SHOWN]

    def __str__(self) -> str:
        lines = [f"packed {self.packed:,}, skipped {sum(self.skipped.values()):,}"]
        for reason, n in sorted(self.skipped.items()):
            more = ", ..." if n > len(self.names[reason]) else ""
            lines.append(f"  {n:,} {reason}: {', '.join(self.names[reason])}{more}")
        return "\n".join(lines)


def write_shards(
    source: Source,
    out: Path,
    shard_size: int = 1000,
    format: Format | None = None,
    size: int | None = None,
    num_workers: int = 0,
    channels: int = 3,
) -> PackReport:
    """Pack a source into shards in `out`; a call with the settings of an interrupted one continues it.

    Images whose short side exceeds `size` are resized to it. A file that needs no change is stored byte by
    byte; others are converted to `format`, by default png for rendered images and jpg for files. Arrays, and
    all files if `channels` is neither 3 nor 1, are read as `channels` bands and stored as `.npy`.
    """
    if not len(source):
        raise UserError(f"{_describe(source)} holds no records: there is nothing to pack")
    settings = {"shard_size": shard_size, "format": format, "size": size, "channels": channels}
    _claim_folder(out, {"source": _describe(source), "records": len(source), **settings})
    report = PackReport()
    with (
        _encoders(RecordEncoder(source, format, size, channels), num_workers) as encode,
        tqdm(total=len(source), desc="packing", unit=" images", smoothing=0.05) as bar,
    ):
        for first in range(0, len(source), shard_size):
            path = out / f"{first // shard_size:05d}.tar"
            rows = range(first, min(first + shard_size, len(source)))
            stats = _load_stats(path)
            if stats is None:
                stats = _pack_shard(path, _count_items(encode(rows), bar.update), len(str(shard_size - 1)))
            else:
                bar.initial += len(rows)  # packed earlier: the speed does not count them
                bar.update(len(rows))
            report.add(stats["successes"], stats["skipped"])
    paths = sorted(out.glob("*.tar"))
    write_manifest(out, [ShardEntry.from_index(path, load_index(path)) for path in paths])
    _write_json(out / "report.json", asdict(report))
    return report


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
    with _report_full_disk(path), write_atomically(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for key, members in samples:
                count += 1
                for kind, data in sorted(members.items()):
                    info = tarfile.TarInfo(f"{key}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, BytesIO(data))
        save_index(build_index(temporary, score, checksums=True).with_header(source=source), path)
    return count


@contextmanager
def _report_full_disk(path: Path) -> Iterator[None]:
    """Turn the OSError of a disk that is full or read-only into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise UserError(
            f"{path} could not be written ({error.strerror}): make room and run the same command again, it "
            "continues with this file"
        ) from error


@contextmanager
def _encoders(
    encoder: RecordEncoder, num_workers: int
) -> Iterator[Callable[[range], Iterator[EncodedRecord | SkippedRecord]]]:
    """Yield a function that encodes rows in order, in this process or in a pool that gets the source once."""
    if num_workers == 0:
        yield lambda rows: map(encoder, rows)
        return
    pool = ProcessPoolExecutor(num_workers, initializer=_init_worker, initargs=(encoder,))
    try:
        yield lambda rows: pool.map(_encode_row, rows, chunksize=8)
    finally:
        pool.shutdown(cancel_futures=True)


_encoder_of_worker: RecordEncoder


def _init_worker(encoder: RecordEncoder) -> None:
    global _encoder_of_worker
    _encoder_of_worker = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_row(row: int) -> EncodedRecord | SkippedRecord:
    return _encoder_of_worker(row)


def _count_items(
    items: Iterable[EncodedRecord | SkippedRecord], count: Callable[[], object]
) -> Iterator[EncodedRecord | SkippedRecord]:
    for item in items:
        yield item
        count()


def _pack_shard(path: Path, encoded: Iterator[EncodedRecord | SkippedRecord], digits: int) -> dict[str, Any]:
    """Write one shard, then its `_stats.json`."""
    skipped: dict[str, list[str]] = {}

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for row, item in enumerate(encoded):
            if isinstance(item, SkippedRecord):
                skipped.setdefault(item.reason, []).append(item.name)
            else:
                key = f"{path.stem}{row:0{max(digits, 4)}d}"
                yield key, _members(key, item)

    stats = {"successes": write_shard(path, samples()), "skipped": skipped}
    _write_json(_stats_path(path), stats)
    return stats


def _members(key: str, item: EncodedRecord) -> dict[str, bytes]:
    text = json.dumps({"key": key, "caption": item.caption, **item.metadata}, ensure_ascii=False)
    return {item.kind: item.image, "txt": item.caption.encode(), "json": text.encode(), **item.members}


def _load_stats(path: Path) -> dict[str, Any] | None:
    """Load the `_stats.json` of a shard that an earlier run completed; None for any other."""
    if not (path.is_file() and _stats_path(path).is_file()):
        return None
    stats = json.loads(_stats_path(path).read_text())
    try:
        return stats if len(load_index(path)) == stats["successes"] else None
    except UserError:  # a corrupt shard is packed again
        return None


def _claim_folder(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings to an empty folder; raise UserError if it was packed with other settings."""
    file = out / "pack.json"
    for leftover in out.glob(".*.tmp"):  # from a run that was killed
        leftover.unlink()
    if file.is_file():
        before = {"channels": 3, **json.loads(file.read_text())}  # older folders lack it
        for name, value in settings.items():
            if before.get(name) != value:
                raise UserError(
                    f"{out} was packed with {name}={_as_yaml(before.get(name))}, not {_as_yaml(value)}: "
                    "choose another out=FOLDER, or delete this one"
                )
        return
    if any(out.glob("*.tar")):
        raise UserError(f"{out} holds shards that pack did not write: choose another out=FOLDER")
    out.mkdir(parents=True, exist_ok=True)
    _write_json(file, settings)


def _describe(source: Source) -> str:
    # compared with the text in pack.json: attributes of a source must keep their names
    plain = {k: v for k, v in getattr(source, "__dict__", {}).items() if isinstance(v, str | int | float)}
    return f"{type(source).__name__}({', '.join(f'{k}={v}' for k, v in plain.items())})"


def _as_yaml(value: Any) -> str:
    return "null" if value is None else str(value)


def _stats_path(shard: Path) -> Path:
    return shard.with_name(f"{shard.stem}_stats.json")


def _write_json(path: Path, value: Any) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
