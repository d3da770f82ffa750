"""The process of a command: its signals, its standard streams, and its exit status."""

import errno
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NoReturn

INTERRUPTED, TERMINATED, CLOSED_OUTPUT = 130, 143, 141
"""Exit statuses after Ctrl-C, after SIGTERM, and where nobody reads standard output, as of Unix programs."""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
STREAMS = ("stdin", "stdout", "stderr")


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit within the block, so that temporary files and workers are removed.

    A handler that the block installs, as that of a training, replaces this one.
    """
    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit_by_sigterm)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) == _exit_by_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_by_sigterm(*_: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the first one is on its way out
    raise SystemExit(TERMINATED)


def open_closed_streams() -> None:
    """Connect standard streams that are closed to /dev/null.

    Otherwise the next file that is opened gets their number, and what a library prints would go into it.
    Where a library has opened such a file already, Python's stream gets another number.
    """
    for name in STREAMS:
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)  # the lowest free number
            setattr(sys, name, open(handle, "r" if name == "stdin" else "w", closefd=False))


def has_reader() -> bool:
    """Return whether no standard stream is a pipe whose reader has gone, as that of `| head -1` does."""
    poller = select.poll()
    for number in (1, 2):
        poller.register(number)
    return not any(events & select.POLLERR for _, events in poller.poll(0))


def exit_for_reader() -> NoReturn:
    """Exit without a word where nobody reads what the command prints."""
    _discard_unwritable_output()
    sys.exit(CLOSED_OUTPUT)


def _discard_unwritable_output() -> None:
    """Connect the output streams that fail to /dev/null, as they would fail again when the process ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def disk_problem(error: OSError) -> str | None:
    """Return the message for a file that cannot be written; None for an error that may be a bug."""
    path = str(error.filename or "standard output")  # whatever else writes files says which one
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path} cannot be written ({error.strerror}): free disk space and run the same command again"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{path} cannot be opened ({error.strerror}): change its permissions or choose another path"
    return None


def exit_interrupted() -> NoReturn:
    """Exit after Ctrl-C; of several ranks, which all get it, only the first says so."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # another one ends the process without a stack trace
    rank = next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "0")
    exit_with("stopped by Ctrl-C" if rank == "0" else "", INTERRUPTED)


def exit_with(message: str, status: int) -> NoReturn:
    """Print a line on stderr, unless it is empty, and exit."""
    _discard_unwritable_output()
    if message:
        with suppress(OSError):
            print(message, file=sys.stderr)
    sys.exit(status)


def report_interrupt(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one line for Ctrl-C while a command still imports its libraries; a hook for `sys.excepthook`."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped by Ctrl-C", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
