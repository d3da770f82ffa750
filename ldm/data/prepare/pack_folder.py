"""The folder that `pack` writes to: its settings, and the statistics of its finished shards."""

import json
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ldm.atomic import write_atomically
from ldm.data.shards.index import index_path, load_index
from ldm.data.shards.manifest import MANIFEST_FILE
from ldm.data.sources import FileSource, Source
from ldm.data.sources.listing import SETTINGS_FILE
from ldm.errors import UserError


def claim_folder(out: Path, source: Source, settings: dict[str, Any]) -> None:
    """Write the settings to an empty folder; raise UserError if it was packed with other settings.

    The number of records is a setting of sources without files only: files may be added and removed.
    """
    count = {} if isinstance(source, FileSource) else {"records": len(source)}
    settings = {"source": describe_source(source), **count, **settings}
    file = out / SETTINGS_FILE
    for leftover in out.glob(".*.tmp"):  # from a run that was killed
        leftover.unlink()
    if file.is_file():
        before = {
            "channels": 3,
            "background": "white",
            **json.loads(file.read_text("utf-8")),
        }  # older folders lack them
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
    write_json(file, settings)


def describe_source(source: Source) -> str:
    """Return the class of a source and its settings, as they are compared with an earlier run's."""
    # attributes of a source must keep their names
    plain = {k: v for k, v in getattr(source, "__dict__", {}).items() if isinstance(v, str | int | float)}
    return f"{type(source).__name__}({', '.join(f'{k}={v}' for k, v in plain.items())})"


def hash_inputs(source: Source, rows: range) -> str:
    """Return a hash of the files and cells that these records are read from; "" if the source has none."""
    if not isinstance(source, FileSource):
        return ""
    digest = blake2b(digest_size=16)
    for row in rows:
        digest.update(source.version(row).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def load_stats(shard: Path) -> dict[str, Any] | None:
    """Load the `_stats.json` of a shard that an earlier run completed; None for any other."""
    if not (shard.is_file() and stats_path(shard).is_file()):
        return None
    stats: dict[str, Any] = json.loads(stats_path(shard).read_text("utf-8"))
    try:
        return stats if len(load_index(shard)) == stats["successes"] else None
    except UserError:  # a corrupt shard is packed again
        return None


def save_stats(shard: Path, stats: dict[str, Any]) -> None:
    """Write the `_stats.json`, which completes a shard."""
    write_json(stats_path(shard), stats)


def reopen_shard(shard: Path) -> None:
    """Remove what says that a shard is complete, before it is written."""
    stats_path(shard).unlink(missing_ok=True)
    (shard.parent / MANIFEST_FILE).unlink(missing_ok=True)


def remove_shards(out: Path, first: int) -> int:
    """Remove the shards that an earlier run packed from number `first` on; return how many."""
    beyond = [
        shard
        for shard in out.glob("*.tar")
        if re.fullmatch(r"\d{5,}", shard.stem) and int(shard.stem) >= first and stats_path(shard).is_file()
    ]
    for shard in beyond:
        reopen_shard(shard)
        shard.unlink()
        index_path(shard).unlink(missing_ok=True)
    return len(beyond)


def stats_path(shard: Path) -> Path:
    """Return the path of a shard's statistics, named as img2dataset does."""
    return shard.with_name(f"{shard.stem}_stats.json")


def write_json(path: Path, value: Any) -> None:
    """Write a value atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _as_yaml(value: Any) -> str:
    return "null" if value is None else str(value)
