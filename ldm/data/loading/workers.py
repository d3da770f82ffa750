"""The processes that read batches: how they start, which signals they hear, and when they end."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait

SIGNALS = ("SIGTERM", "SIGUSR1")
"""A scheduler sends these to every process of a job; only the one that trains has an answer."""


def safe_start() -> str | None:
    """How worker processes start unless told otherwise: not by a fork of a process that has threads.

    A fork while another thread of it holds one of Python's own locks hangs (seen once in some thirty starts).
    """
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else None


def start_server() -> None:
    """Start the server that forks workers, and Python's tracker of their semaphores, deaf to SIGNALS.

    Either would die of one, the tracker with a page of tracebacks. They inherit what is blocked here, and a
    signal that comes meanwhile is delivered after. The tracker first, for its start unblocks SIGTERM.
    """
    forkserver.set_forkserver_preload(["ldm.data.loading.loader"])
    blocked = {getattr(signal, name) for name in SIGNALS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin(worker: int) -> None:
    """In a new worker: hear no signal of a scheduler's, and end with the process that it reads for.

    PyTorch's own watch is on the worker's parent, which is the server: that lives for as long as its workers,
    so that after a `kill -9` both stayed for ever, and with them the open output of a SLURM step.
    """
    for name in SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_the_reader, daemon=True).start()


def _end_with_the_reader() -> None:
    reader = multiprocessing.parent_process()
    assert reader is not None
    wait([reader.sentinel])
    os._exit(1)
