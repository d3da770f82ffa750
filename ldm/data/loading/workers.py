"""Worker processes that read batches: their start method, the signals they ignore, and when they exit."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")
"""Sent by a scheduler to every process of a SLURM job, or by Ctrl-C to every process of a command; only the
training process handles them."""


def default_start_method() -> str | None:
    """Return the default start method of workers: forkserver where it exists, to avoid forking threads.

    A fork while another thread holds one of Python's own locks can hang (seen once in about 30 starts).
    """
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else None


def start_fork_server() -> None:
    """Start the server that forks workers, and Python's resource tracker, with SIGNALS blocked in both.

    A signal would kill either of them, the tracker with a page of tracebacks. They inherit the blocked
    signals; one that arrives meanwhile is delivered afterwards. The tracker comes first, because its start
    unblocks SIGTERM.
    """
    forkserver.set_forkserver_preload(["ldm.data.loading.fork_server"])
    signals = {getattr(signal, name) for name in SIGNALS}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def init_worker(worker: int) -> None:
    """Set up a new worker: it ignores the scheduler's signals and exits with the training process.

    PyTorch's own watchdog watches the worker's parent, which is the fork server. The server lives as long as
    its workers, so after `kill -9` of the training process both would stay, and keep a SLURM step's output
    open.
    """
    for name in SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    exit_with_parent()


def exit_with_parent() -> None:
    """Start a thread that ends this process when the process that started it has ended, however it did."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()
