"""Files that appear whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from ldm.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`, synced and renamed onto it when the block ends well, removed when not."""
    temporary = path.with_name(
        f".{path.name}.{uuid4().hex[:12]}.tmp"
    )  # process numbers repeat on other nodes
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Makes one sentence of a disk that is full or read-only."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise UserError(
            f"{path} could not be written ({error.strerror}): make room and run the same command again, it "
            "goes on with this file"
        ) from error
