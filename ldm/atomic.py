"""Files that appear under their name complete or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from ldm.errors import WriteError

ADVICE = {
    "free disk space and run the same command again": ("ENOSPC", "EDQUOT", "EFBIG"),
    "choose another folder or change its permissions": ("EROFS", "EACCES", "EPERM"),
    "choose another path": ("EISDIR", "ENOTDIR", "ENAMETOOLONG", "ENOENT"),
    "check the disk": ("EIO", "ESTALE"),
}
"""What to do about a file that cannot be written, with the names of the errors that it helps against."""


@contextmanager
def write_atomically(
    path: Path, temporary: Path | None = None, sync_file: bool = True, sync_folder: bool = False
) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path` and rename it to `path` when the block ends.

    The folder is created if it does not exist. If the block raises, the temporary file is removed and `path`
    stays as it was. A process that has `path` open keeps the file it opened. The new file gets the
    permissions that the umask gives any new file.

    Args:
        temporary: its name, in the same folder; None for a hidden unique one.
        sync_file: flush the data to disk before the rename, so that a power failure leaves no empty file.
        sync_folder: flush the rename as well, so that a power failure does not bring the old file back.

    Raises WriteError where the disk is full or the folder is read-only.
    """
    if temporary is None:  # no process number in its name: other nodes have the same ones
        temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            if temporary.stat().st_mode != mode:  # some libraries write files for their owner alone
                temporary.chmod(mode)
            if sync_file:
                sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if sync_folder:
            sync(path.parent)
    except OSError as error:
        problem = explain_write_error(error, path, temporary)
        if problem is None:
            raise
        raise problem from error


def write_file(path: Path, content: str | bytes) -> None:
    """Write a small file atomically. Raises WriteError."""
    with write_atomically(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def explain_write_error(error: OSError, path: Path, temporary: Path | None = None) -> WriteError | None:
    """Return what an error says about writing `path`; None for an error about anything else."""
    name = errno.errorcode.get(error.errno or 0)
    advice = next((advice for advice, names in ADVICE.items() if name in names), None)
    is_own = error.filename is None or Path(error.filename) in (path, temporary, *path.parents)
    return WriteError(f"{path} cannot be written ({error.strerror})", advice) if advice and is_own else None


def sync(path: Path) -> None:
    """Wait until a file's data, or a folder's list of names, are on disk."""
    is_folder = path.is_dir()
    if is_folder and os.name != "posix":  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
