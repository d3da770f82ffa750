"""The lock of a run's folder: two jobs that write checkpoints into one folder would corrupt both."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ldm.errors import UserError

LOG = logging.getLogger(__name__)
FILE = "lock"


@contextmanager
def hold(run: str, rank_zero: bool = True) -> Iterator[None]:
    """Lock the run's folder within the block; UserError if another job holds the lock.

    The kernel holds the lock, the file only says who has it: after kill -9 it is free at once. Some network
    file systems keep the lock of a lost node for a while; the requeued job, which has the same job number,
    ignores it. Only rank 0 takes the lock, for all ranks.
    """
    if not rank_zero:
        yield
        return
    path = Path(run) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock is released: after that it may be another job's file
        file.close()


def _lock(path: Path) -> IO[str]:
    """Return the open, locked file."""
    while True:
        file = open(path, "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _check_own_job(path, file)
        except OSError as error:
            LOG.warning("cannot lock %s (%s): make sure that no second job uses this folder", path, error)
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            break
        file.close()  # the previous holder has just removed it
    file.truncate(0)
    holder = f"{socket.gethostname()} {os.getpid()} {os.environ.get('SLURM_JOB_ID', '-')}\n"
    with suppress(OSError):  # on a full disk the lock holds as well
        os.write(file.fileno(), holder.encode())
    os.register_at_fork(after_in_child=file.close)  # a loader worker that outlives a kill must not keep it
    return file


def _check_own_job(path: Path, file: IO[str]) -> None:
    """Raise UserError unless the lock's holder is this same job on its previous node."""
    file.seek(0)
    host, process, job = (file.read().split() or ["another machine", "?", "-"])[:3]
    if job != "-" and job == os.environ.get("SLURM_JOB_ID") and host != socket.gethostname():
        return
    number = f" (SLURM job {job})" if job != "-" else ""
    raise UserError(
        f"run={path.parent} is in use by process {process} on {host}{number}: wait until it ends or choose "
        f"another run=FOLDER; delete {path} if that machine is gone"
    )
