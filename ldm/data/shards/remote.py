"""Shards from afar: read whole, kept on this machine's disk up to a bound, shared by all its processes."""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import fsspec  # type: ignore[import-untyped]
from braceexpand import braceexpand
from webdataset.gopen import gopen

from ldm.data.shards.index import INDEX, index_path, read_index
from ldm.data.shards.manifest import FILE, ShardNames, listed, read_manifest
from ldm.data.shards.reader import Shards
from ldm.errors import InvalidValue, UserError

_REMOTE = re.compile(r"[a-z][a-z0-9+]*://|pipe:")
_TAR = re.compile(r"[^/\s]+\.tar")
ATTEMPTS = 4


def is_remote(spec: str | Sequence[str]) -> bool:
    """Whether shards are named by URL (`s3://`, `gs://`, `https://`, ...) or by a command, `pipe:`."""
    return any(_REMOTE.match(one) for one in ([spec] if isinstance(spec, str) else spec))


class Cache:
    """A folder of this machine that holds remote shards as they are read, the ones read last for longest.

    A shard is fetched whole, by one process while others wait for it, and appears under its name when it is
    whole. Beyond `max_gb` the ones opened longest ago are removed; those in flight come on top.
    """

    def __init__(self, folder: str, max_gb: float) -> None:
        if max_gb <= 0:
            raise InvalidValue(f"the cache of shards needs max_gb > 0, not {max_gb}")
        self.folder, self.max_bytes = folder, int(max_gb * 1e9)
        self._origins: dict[Path, tuple[str, str, Path | None]] = {}

    def open(self, spec: str | Sequence[str], index_folder: Path | None = None) -> Shards:
        """The shards of a URL, as they will lie in the cache, by the manifest that lies beside them.

        UserError where there is no manifest: half a million shards cannot be counted at every start.
        """
        urls = [spec] if isinstance(spec, str) else list(spec)
        if len(urls) > 1:
            raise UserError(
                f"remote shards are one folder or brace pattern, not {len(urls)}: give {urls[0]} alone"
            )
        prefix, names, suffix = _parts(urls[0])
        mirror = self._mirror(prefix, suffix, index_folder)
        for name in (FILE, "latents.json"):
            self._small(mirror / name)
        noted = index_folder or mirror
        names = names or listed(noted)
        rows = read_manifest(noted, names) if names else None
        if rows is None:
            raise UserError(
                f"{urls[0]} has no {FILE} that names its shards: make one where they lie, with {INDEX}"
            )
        return Shards(ShardNames(mirror, rows["name"]), rows["count"], rows, index_folder, self)

    def __call__(self, path: Path) -> None:
        """See to it that this shard is here; OSError where it cannot be had."""
        if path.is_file():
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            return
        with _locked(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                if self._origins[path.parent][2] is None:
                    self._small(index_path(path))
                self._fetch(path)
                self._bound(path)

    def _mirror(self, prefix: str, suffix: str, index_folder: Path | None) -> Path:
        mirror = (
            Path(self.folder).expanduser() / blake2b((prefix + suffix).encode(), digest_size=8).hexdigest()
        )
        mirror.mkdir(parents=True, exist_ok=True)
        self._origins[mirror] = prefix, suffix, index_folder
        return mirror

    def _small(self, path: Path) -> None:
        """A file beside the shards, where there is one; pipes have none."""
        prefix = self._origins[path.parent][0]
        if not prefix.startswith("pipe:"):
            with _sentence(prefix + path.name):
                try:
                    self._copy(prefix + path.name, path)
                except FileNotFoundError:
                    path.unlink(missing_ok=True)

    def _fetch(self, path: Path) -> None:
        prefix, suffix, index_folder = self._origins[path.parent]
        url, index = f"{prefix}{path.name}{suffix}", read_index(index_path(path, index_folder))
        for attempt in range(ATTEMPTS):
            try:
                with _sentence(url):
                    self._copy(url, path, None if index is None else int(index.head["shard_bytes"]))
                if index is not None:  # as old as the one that was indexed: the index need not be checked
                    os.utime(path, ns=(time.time_ns(), int(index.head["mtime"])))
                return
            except OSError:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(2.0**attempt / 4)

    def _copy(self, url: str, path: Path, size: int | None = None) -> None:
        part = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
        try:
            with _stream(url) as source, open(part, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            if size not in (None, part.stat().st_size):
                raise OSError(f"{url} arrived with {part.stat().st_size} of {size} bytes")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _bound(self, newest: Path) -> None:
        states = [(path.stat(), path) for path in Path(self.folder).expanduser().glob("*/*.tar")]
        total = sum(state.st_size for state, _ in states)
        for state, path in sorted(states, key=lambda item: item[0].st_atime):
            if total > self.max_bytes and path != newest:
                path.unlink(missing_ok=True)
                total -= state.st_size


def _parts(url: str) -> tuple[str, list[str], str]:
    """(what stands before the shards' names, the names, what stands behind); no names for a folder."""
    found = list(braceexpand(url))
    match = list(_TAR.finditer(found[0]))
    if not match:
        return url.rstrip("/") + "/", [], ""
    prefix, suffix = found[0][: match[-1].start()], found[0][match[-1].end() :]
    names = [one[len(prefix) : len(one) - len(suffix) or None] for one in found]
    if any(
        not _TAR.fullmatch(name) or not one.startswith(prefix) for name, one in zip(names, found, strict=True)
    ):
        raise UserError(f"{url} names shards of several folders: give one folder's")
    return prefix, names, suffix


@contextmanager
def _stream(url: str) -> Iterator[BinaryIO]:
    with gopen(url) if url.startswith("pipe:") else fsspec.open(url, "rb") as stream:
        yield stream


@contextmanager
def _sentence(url: str) -> Iterator[None]:
    """A driver that is not installed is the user's to mend; all else that drivers raise is an OSError."""
    try:
        yield
    except OSError:
        raise
    except ImportError as error:
        raise UserError(f"{url} needs a driver that is not installed: {error}") from error
    except Exception as error:
        raise OSError(f"{url}: {type(error).__name__}: {error}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
