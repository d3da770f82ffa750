"""Transfers of remote files: URLs through fsspec, commands through a shell; failed ones are repeated."""

import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
from braceexpand import braceexpand

from ldm.atomic import write_atomically
from ldm.errors import UserError

COMMAND = "pipe:"
MAX_ATTEMPTS = 4
STALL_SECONDS = 60.0
"""A connection over HTTP that receives nothing for this long has failed."""
_REMOTE = re.compile(rf"[a-z][a-z0-9+.-]*://|{COMMAND}", re.IGNORECASE)
_TAR = re.compile(r"[^/\s]+\.tar")


class Unreachable(UserError):
    """A URL that this machine cannot reach, or may not read."""


def is_remote(spec: str | Sequence[str]) -> bool:
    """Whether shards are named by URL (`s3://`, `gs://`, `https://`, ...) or by a command, `pipe:`."""
    return any(_REMOTE.match(part) for part in ([spec] if isinstance(spec, str) else spec))


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of remote shards; the URL or command of a file is `prefix` + name + `suffix`."""

    prefix: str
    suffix: str
    pattern: tuple[str, ...]
    """The names that a brace pattern lists; empty for a whole folder."""

    @classmethod
    def parse(cls, spec: str) -> "RemoteFolder":
        """Return the folder of a URL, brace pattern or command; UserError for shards of several folders."""
        urls = list(braceexpand(spec))
        match = list(_TAR.finditer(urls[0]))
        if not match and spec.startswith(COMMAND):
            raise UserError(f"{spec} names no shard: write its name, for example pipe:cat /data/00000.tar")
        if not match:
            return cls(f"{spec.rstrip('/')}/", "", ())
        prefix, suffix = urls[0][: match[-1].start()], urls[0][match[-1].end() :]
        names = tuple(url[len(prefix) : len(url) - len(suffix) or None] for url in urls)
        for name, url in zip(names, urls, strict=True):
            if not _TAR.fullmatch(name) or not url.startswith(prefix):
                raise UserError(f"{spec} names shards in several folders: give a list, one item per folder")
        return cls(prefix, suffix, names)

    @property
    def is_command(self) -> bool:
        """Whether each shard is the output of a command, which yields no other files."""
        return self.prefix.startswith(COMMAND)

    def url(self, name: str) -> str:
        """Return the URL or the command of one file."""
        return f"{self.prefix}{name}{self.suffix}"

    def list_names(self) -> list[str]:
        """Return the names of all shards, sorted; an empty list if the server does not list the folder."""
        if self.pattern:
            return list(self.pattern)
        try:
            with _unified_errors(self.prefix):
                filesystem, path = _open_filesystem(self.prefix)
                files = filesystem.ls(path, detail=False)
        except (FileNotFoundError, PermissionError):
            return []
        names = {file.rstrip("/").rpartition("/")[2] for file in files}
        return sorted(name for name in names if _TAR.fullmatch(name) and name[0] != ".")

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if it is not known."""
        if self.is_command:
            return None
        with _unified_errors(self.url(name)):
            filesystem, path = _open_filesystem(self.url(name))
            size: int | None = filesystem.size(path)
            return size

    def copy(self, name: str, path: Path, size: int | None = None) -> None:
        """Copy one file to `path`; a transfer that fails, or is not of `size` bytes, is repeated.

        Raises FileNotFoundError for a missing file, PermissionError without the right to read it, OSError for
        all other failures, UserError for a driver that is not installed.
        """
        for attempt in range(MAX_ATTEMPTS):
            try:
                _copy(self.url(name), path, size)
                return
            except (FileNotFoundError, PermissionError):
                raise
            except OSError:
                if attempt == MAX_ATTEMPTS - 1:
                    raise
                time.sleep(2.0**attempt / 4)

    def copy_if_present(self, name: str, path: Path) -> None:
        """Copy a small file from beside the shards, or remove an older copy; Unreachable if that fails."""
        if self.is_command:
            return
        try:
            self.copy(name, path)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
        except OSError as error:
            what = "credentials" if isinstance(error, PermissionError) else "network"
            raise Unreachable(
                f"{self.url(name)} cannot be read ({error}): check the URL and the {what} of this machine"
            ) from error

    def copy_if_allowed(self, name: str, path: Path) -> None:
        """Do the same, but take a file that may not be read for a missing one.

        S3 answers 403 for missing files in buckets that may not be listed.
        """
        try:
            self.copy_if_present(name, path)
        except Unreachable as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
            path.unlink(missing_ok=True)


def _copy(url: str, path: Path, size: int | None) -> None:
    with write_atomically(path, sync_file=False) as part:  # no flush: it is only a copy
        if url.startswith(COMMAND):
            _run(url.removeprefix(COMMAND), part)
        else:
            with _unified_errors(url):
                filesystem, remote_path = _open_filesystem(url)
                filesystem.get_file(remote_path, str(part))
        if size not in (None, part.stat().st_size):
            raise OSError(f"received {part.stat().st_size:,} of {size:,} bytes")


def _run(command: str, target: Path) -> None:
    """Write a command's output to a file; OSError with the last line of its messages if it fails."""
    with open(target, "wb") as file:
        done = subprocess.run(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE
        )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").split("\n")
        text = next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
        raise OSError(f"exit status {done.returncode}{text}")


def _open_filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system and the path in it."""
    protocol = url.partition("://")[0].lower()
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout  # takes 0.2 s, which other protocols need not wait for

        timeout = ClientTimeout(total=None, sock_connect=30, sock_read=STALL_SECONDS)
        configured = fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True, **configured}
    filesystem, path = fsspec.url_to_fs(url, **options)
    return filesystem, path


@contextmanager
def _unified_errors(url: str) -> Iterator[None]:
    """Raise UserError for a protocol without a driver, OSError of the right kind for all else."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"{url} needs a driver that is not installed: {error}") from error
    except Exception as error:
        if isinstance(error, ValueError) and "Protocol not known" in str(error):
            raise UserError(f"{url} has an unknown protocol: use s3://, gs://, https:// or pipe:") from error
        raise _as_os_error(error) from error


def _as_os_error(error: Exception) -> OSError:
    """Return an exception of any driver as an OSError whose class says whether the file exists."""
    # fsspec reports every failed request for a size as a missing file
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    status, text = getattr(cause, "status", None), " ".join(str(cause).split())
    if isinstance(status, int):  # of HTTP
        text = f"{status} {getattr(cause, 'message', '')}".strip()
    elif not isinstance(cause, OSError):
        text = f"{type(cause).__name__}: {text}"
    if status in (404, 410) or isinstance(cause, FileNotFoundError):
        return FileNotFoundError(text)
    if status in (401, 403) or isinstance(cause, PermissionError):
        return PermissionError(text)
    return OSError(text)
