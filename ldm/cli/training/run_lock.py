"""One job a run: two that wrote checkpoints into one folder would spoil both."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ldm.errors import UserError

LOG = logging.getLogger(__name__)
FILE = "lock"


@contextmanager
def hold(run: str, mine: bool = True) -> Iterator[None]:
    """The run's folder is this job's within the block; UserError where another job has it.

    The kernel holds the lock and not the file, which only says who: after kill -9 it is free at once. A lock
    that outlives its node, as some network file systems keep it for a while, does not stop the requeued job,
    which is the same job by its number. `mine` is whether this rank speaks for the job: rank 0 does.
    """
    if not mine:
        yield
        return
    path = Path(run) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _taken(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock goes, or it would be another job's file
        file.close()


def _taken(path: Path) -> IO[str]:
    """The open file, locked."""
    while True:
        file = open(path, "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _refuse(path, file)
        except OSError as error:
            LOG.warning("%s cannot be locked here (%s): let no second job write there", path, error)
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            break
        file.close()  # the one who had it has just removed it
    file.truncate(0)
    file.write(f"{socket.gethostname()} {os.getpid()} {os.environ.get('SLURM_JOB_ID', '-')}\n")
    file.flush()
    os.register_at_fork(after_in_child=file.close)  # a loader's worker that outlives a kill must not keep it
    return file


def _refuse(path: Path, file: IO[str]) -> None:
    """UserError, unless the one who has it is this very job on its former node."""
    file.seek(0)
    host, process, job = (file.read().split() or ["another machine", "?", "-"])[:3]
    if job != "-" and job == os.environ.get("SLURM_JOB_ID") and host != socket.gethostname():
        return
    number = f" (SLURM job {job})" if job != "-" else ""
    raise UserError(
        f"run={path.parent} is in use by process {process} on {host}{number}: wait for its end or choose "
        f"another run=FOLDER; delete {path} if that machine is gone"
    )
