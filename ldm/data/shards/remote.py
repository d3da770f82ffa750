"""Remote shards: fetched into a size-limited cache on local disk that all processes of the machine share."""

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

import fsspec  # type: ignore[import-untyped]
from braceexpand import braceexpand
from webdataset.gopen import gopen

from ldm.atomic import write_atomically
from ldm.data.shards.index import INDEX_COMMAND, index_path, read_index
from ldm.data.shards.manifest import MANIFEST_FILE, ShardNames, listed_names, read_manifest
from ldm.data.shards.reader import Shards
from ldm.errors import InvalidValue, UserError
from ldm.typing import PositiveFloat

_REMOTE = re.compile(r"[a-z][a-z0-9+]*://|pipe:")
_TAR = re.compile(r"[^/\s]+\.tar")
MAX_ATTEMPTS = 4


def is_remote(spec: str | Sequence[str]) -> bool:
    """Whether shards are named by URL (`s3://`, `gs://`, `https://`, ...) or by a command, `pipe:`."""
    return any(_REMOTE.match(part) for part in ([spec] if isinstance(spec, str) else spec))


class Cache:
    """A local folder of remote shards that evicts the least recently opened ones.

    A shard is fetched by one process while others wait for it, and gets its name when it is complete.
    Beyond `max_gb` the least recently opened shards are removed; those being fetched are not counted.
    """

    def __init__(self, folder: str, max_gb: PositiveFloat) -> None:
        if max_gb <= 0:
            raise InvalidValue(f"the cache of shards needs max_gb > 0, not {max_gb}")
        self.folder, self.max_bytes = folder, int(max_gb * 1e9)
        self._origins: dict[Path, tuple[str, str, Path | None]] = {}

    def open(self, spec: str | Sequence[str], index_folder: Path | None = None) -> Shards:
        """Return the shards of a URL, listed by the manifest beside them and fetched on first use.

        Raises UserError without a manifest: half a million shards cannot be counted at every start.
        """
        urls = [spec] if isinstance(spec, str) else list(spec)
        if len(urls) > 1:
            raise UserError(
                f"remote shards must be one folder or brace pattern, not {len(urls)}: give {urls[0]} alone"
            )
        prefix, names, suffix = _split_url(urls[0])
        mirror = self._create_mirror(prefix, suffix, index_folder)
        for name in (MANIFEST_FILE, "latents.json"):
            self._copy_if_present(mirror / name)
        manifest_folder = index_folder or mirror
        names = names or listed_names(manifest_folder)
        rows = read_manifest(manifest_folder, names) if names else None
        if rows is None:
            raise UserError(
                f"{urls[0]} has no {MANIFEST_FILE} that lists its shards: write one where they are stored, "
                f"with {INDEX_COMMAND}"
            )
        return Shards(ShardNames(mirror, rows["name"]), rows["count"], rows, index_folder, self)

    def __call__(self, path: Path) -> None:
        """Fetch this shard if it is not in the cache; OSError if it cannot be fetched."""
        if path.is_file():
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            return
        with _lock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                if self._origins[path.parent][2] is None:
                    self._copy_if_present(index_path(path))
                self._fetch(path)
                self._evict(path)

    def _create_mirror(self, prefix: str, suffix: str, index_folder: Path | None) -> Path:
        digest = blake2b((prefix + suffix).encode(), digest_size=8).hexdigest()
        mirror = Path(self.folder).expanduser() / digest
        mirror.mkdir(parents=True, exist_ok=True)
        self._origins[mirror] = prefix, suffix, index_folder
        return mirror

    def _copy_if_present(self, path: Path) -> None:
        """Copy a small file from beside the shards, if there is one; a pipe has none."""
        prefix = self._origins[path.parent][0]
        if not prefix.startswith("pipe:"):
            with _driver_errors(prefix + path.name):
                try:
                    self._copy(prefix + path.name, path)
                except FileNotFoundError:
                    path.unlink(missing_ok=True)

    def _fetch(self, path: Path) -> None:
        prefix, suffix, index_folder = self._origins[path.parent]
        url, index = f"{prefix}{path.name}{suffix}", read_index(index_path(path, index_folder))
        for attempt in range(MAX_ATTEMPTS):
            try:
                with _driver_errors(url):
                    self._copy(url, path, None if index is None else int(index.header["shard_bytes"]))
                if index is not None:  # with the mtime that was indexed, the index counts as up to date
                    os.utime(path, ns=(time.time_ns(), int(index.header["mtime"])))
                return
            except OSError:
                if attempt == MAX_ATTEMPTS - 1:
                    raise
                time.sleep(2.0**attempt / 4)

    def _copy(self, url: str, path: Path, size: int | None = None) -> None:
        with write_atomically(path, sync_file=False) as part:  # no flush: it is only a cache
            with _open_url(url) as source, open(part, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            if size not in (None, part.stat().st_size):
                raise OSError(f"received {part.stat().st_size} of {size} bytes of {url}")

    def _evict(self, newest: Path) -> None:
        states = [(path.stat(), path) for path in Path(self.folder).expanduser().glob("*/*.tar")]
        total = sum(state.st_size for state, _ in states)
        for state, path in sorted(states, key=lambda item: item[0].st_atime):
            if total > self.max_bytes and path != newest:
                path.unlink(missing_ok=True)
                total -= state.st_size


def _split_url(url: str) -> tuple[str, list[str], str]:
    """Return (what precedes the shards' names, the names, what follows them); no names for a folder."""
    urls = list(braceexpand(url))
    match = list(_TAR.finditer(urls[0]))
    if not match:
        return url.rstrip("/") + "/", [], ""
    prefix, suffix = urls[0][: match[-1].start()], urls[0][match[-1].end() :]
    names = [u[len(prefix) : len(u) - len(suffix) or None] for u in urls]
    if any(not _TAR.fullmatch(name) or not u.startswith(prefix) for name, u in zip(names, urls, strict=True)):
        raise UserError(f"{url} names shards in several folders: give the shards of one folder")
    return prefix, names, suffix


@contextmanager
def _open_url(url: str) -> Iterator[BinaryIO]:
    with gopen(url) if url.startswith("pipe:") else fsspec.open(url, "rb") as stream:
        yield stream


@contextmanager
def _driver_errors(url: str) -> Iterator[None]:
    """Raise UserError for a driver that is not installed, OSError for all else that drivers raise."""
    try:
        yield
    except OSError:
        raise
    except ImportError as error:
        raise UserError(f"{url} needs a driver that is not installed: {error}") from error
    except Exception as error:
        raise OSError(f"{url}: {type(error).__name__}: {error}") from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
