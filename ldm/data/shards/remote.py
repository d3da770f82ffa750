"""Copies of remote shards on local disk: a size-limited cache that all processes of the machine share."""

import fcntl
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ldm.atomic import write_atomically
from ldm.data.shards.index import Index, index_path, read_index
from ldm.data.shards.manifest import MANIFEST_FILE, ShardNames, listed_names, read_manifest
from ldm.data.shards.transfer import RemoteFolder
from ldm.errors import InvalidValue, UserError
from ldm.typing import PositiveFloat

LATENT_HEADER_FILE = "latents.json"
INDEX_REMOTE_COMMAND = (
    "`python -m ldm.cli.index shards=URL out=FOLDER`, and upload the files in FOLDER or set data.index=FOLDER"
)


class Cache:
    """A local folder of remote shards that evicts the least recently opened ones.

    A shard is fetched by one process while others wait for it, and gets its name when it is complete.
    Beyond `max_gb` the least recently opened shards are removed; those being fetched are not counted.
    """

    def __init__(self, folder: str, max_gb: PositiveFloat) -> None:
        if max_gb <= 0:
            raise InvalidValue(f"the cache of shards needs max_gb > 0, not {max_gb}")
        self.folder, self.max_bytes = Path(folder).expanduser(), max_gb * 1e9
        self._remote: dict[Path, RemoteFolder] = {}
        self._copied = set[Path]()

    def read_manifest(self, spec: str, index_folder: Path | None = None) -> tuple[Path, np.ndarray]:
        """Return the folder of the copies of remote shards, and the shards' rows of the manifest.

        The manifest comes from `index_folder`, if given, else from beside the shards. Raises UserError
        without one: half a million shards cannot be counted at every start.
        """
        remote = RemoteFolder.parse(spec)
        folder = self._folder(remote)
        if index_folder is None and not remote.is_command:
            self._copy_once(folder / MANIFEST_FILE, remote.copy_if_present)
        names = list(remote.pattern) or listed_names(index_folder or folder)
        rows = read_manifest(index_folder or folder, names) if names else None
        if rows is None:
            raise UserError(
                f"{index_folder or spec} has no {MANIFEST_FILE} that lists the shards: write one with "
                f"{INDEX_REMOTE_COMMAND}"
            )
        if index_folder is not None and (index_folder / LATENT_HEADER_FILE).is_file():
            with write_atomically(folder / LATENT_HEADER_FILE) as part:
                shutil.copyfile(index_folder / LATENT_HEADER_FILE, part)
        else:
            self._copy_once(folder / LATENT_HEADER_FILE, remote.copy_if_allowed)
        return folder, rows

    def list_shards(self, spec: str) -> ShardNames:
        """Return the paths that the shards of a URL, pattern or command will have here; none is fetched."""
        remote = RemoteFolder.parse(spec)
        folder = self._folder(remote)
        for name in (MANIFEST_FILE, LATENT_HEADER_FILE):
            self._copy_once(folder / name, remote.copy_if_allowed)
        listed = listed_names(folder)
        names = remote.list_names() or listed
        if not names:
            raise UserError(
                f"{spec} contains no shards (*.tar), or its server does not list them: correct the URL, or "
                f"name the shards with a pattern, {spec.rstrip('/')}/{{00000..00999}}.tar"
            )
        if not remote.pattern and (missing := sorted(set(listed) - set(names))):
            raise UserError(
                f"{len(missing)} shards of {spec} are missing, the first is {missing[0]}: upload them, or "
                "index the folder again and upload its manifest"
            )
        return ShardNames.from_names(folder, names)

    def fetch(self, path: Path, index_folder: Path | None = None) -> None:
        """Fetch this shard, if it is remote and not here, and the index beside it unless it is in a folder.

        Raises OSError or UserError if that fails.
        """
        if path.parent not in self._remote:
            return
        if path.is_file():
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            return
        with _lock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                if index_folder is None:
                    self._copy_small(index_path(path))
                self._fetch(path, index_folder)
                self._evict(path)

    def load_index(self, path: Path, expected_hash: bytes | None, index_folder: Path | None) -> Index:
        """Return the index of a remote shard, without the shard; UserError if there is none of it."""
        for is_copied in (False, True):
            if is_copied and index_folder is None:
                self._copy_small(index_path(path))
            index = read_index(index_path(path, index_folder))
            if index is not None and index.hash == (expected_hash or index.hash):
                return index
        raise UserError(
            f"the index of {self.name_urls(str(path))} is missing, or of another shard: write it with "
            f"{INDEX_REMOTE_COMMAND}"
        )

    def is_remote(self, path: Path) -> bool:
        """Whether this is the path of a remote shard's copy."""
        return path.parent in self._remote

    def size(self, path: Path) -> int | None:
        """Return the size of a remote shard in bytes; None if it is not known."""
        return self._remote[path.parent].size(path.name)

    def remove_outdated(self, path: Path) -> None:
        """Remove the copy of a remote shard that has another size there; keep it if that is not known."""
        if not self.is_remote(path) or not path.is_file():
            return
        try:
            is_outdated = self.size(path) not in (None, path.stat().st_size)
        except OSError:
            return
        if is_outdated:
            path.unlink(missing_ok=True)

    @contextmanager
    def temporary_copy(self, path: Path) -> Iterator[None]:
        """Fetch a remote shard, with its index and `_stats.json`, and remove it again after the block.

        Whether the shard has the size that was indexed is left to the block.
        """
        if not self.is_remote(path):
            yield
            return
        try:
            self._copy_shard(path)
            for file in (index_path(path), path.with_name(f"{path.stem}_stats.json")):
                self._copy_small(file)
            yield
        finally:
            path.unlink(missing_ok=True)

    def name_urls(self, text: str) -> str:
        """Return a text with the URLs of remote shards in place of the paths of their copies."""
        for folder, remote in self._remote.items():
            text = text.replace(f"{folder}/", remote.prefix).replace(str(folder), remote.prefix.rstrip("/"))
        return text

    def _folder(self, remote: RemoteFolder) -> Path:
        digest = blake2b((remote.prefix + remote.suffix).encode(), digest_size=8).hexdigest()
        folder = self.folder / digest
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the cache of remote shards, {self.folder}, cannot be created ({error.strerror}): choose "
                "another folder with data.cache.folder=FOLDER in training, cache.folder=FOLDER elsewhere"
            ) from error
        self._remote[folder] = remote
        return folder

    def _copy_small(self, path: Path) -> None:
        """Copy a small file from beside a shard, if there is one."""
        self._remote[path.parent].copy_if_allowed(path.name, path)

    def _copy_once(self, path: Path, copy: Callable[[str, Path], None]) -> None:
        if path not in self._copied:
            copy(path.name, path)
            self._copied.add(path)

    def _fetch(self, path: Path, index_folder: Path | None) -> None:
        index = read_index(index_path(path, index_folder))
        self._copy_shard(path, None if index is None else int(index.header["shard_bytes"]))
        if index is not None:  # with the mtime that was indexed, the index counts as up to date
            os.utime(path, ns=(time.time_ns(), int(index.header["mtime"])))

    def _copy_shard(self, path: Path, size: int | None = None) -> None:
        remote = self._remote[path.parent]
        try:
            remote.copy(path.name, path, size)
        except OSError as error:
            raise OSError(f"{remote.url(path.name)}: {error}") from error

    def _evict(self, newest: Path) -> None:
        states = [(path.stat(), path) for path in self.folder.glob("*/*.tar")]
        total = sum(state.st_size for state, _ in states)
        for state, path in sorted(states, key=lambda item: item[0].st_atime):
            if total > self.max_bytes and path != newest:
                path.unlink(missing_ok=True)
                total -= state.st_size


@contextmanager
def temporary_cache() -> Iterator[Cache]:
    """Yield a cache in the system's temporary folder, $TMPDIR; a UserError in the block names the URLs."""
    with tempfile.TemporaryDirectory(prefix="ldm-shards-") as folder:
        cache = Cache(folder, math.inf)
        try:
            yield cache
        except UserError as error:
            raise UserError(cache.name_urls(str(error))) from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
