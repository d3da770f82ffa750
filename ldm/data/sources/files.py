"""The files that records are read from."""

import os
import stat
from pathlib import Path

from ldm.data.sources.record import SkippedRecord


def read_file(path: Path, name: str) -> bytes:
    """Return the bytes of a file; raise SkippedRecord for `name` where they cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SkippedRecord("unreadable", f"{name} (a folder or a device, not a file)")
        return path.read_bytes()
    except FileNotFoundError:
        raise SkippedRecord("missing", name) from None
    except OSError as error:
        raise SkippedRecord("unreadable", f"{name} ({error.strerror})") from error
    except ValueError:  # characters that no path has
        raise SkippedRecord("missing", name) from None


def file_version(path: Path) -> str:
    """Return the size and time of a file, and whether it may be read; a reason where there is none."""
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        return type(error).__name__
    return f"{state.st_size} {state.st_mtime_ns} {os.access(path, os.R_OK)}"
