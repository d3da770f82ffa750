"""A pool of worker processes that ends at once, without leaving a process or a temporary file."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from ldm.data.loading.workers import exit_with_parent
from ldm.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
TERMINATED = 143
_task: Callable[[Any], Any]
_is_busy = False


@contextmanager
def parallel_map(
    task: Callable[[Item], Result], num_workers: int
) -> Iterator[Callable[[Iterable[Item]], Iterator[Result]]]:
    """Yield a function that maps items by `task` in this many processes, in order; 0 maps in this process.

    Each process gets the task once. If the block raises, as for Ctrl-C, the items that workers are busy with
    are not waited for.
    """
    if num_workers == 0:
        yield lambda items: map(task, items)
        return
    pool = ProcessPoolExecutor(num_workers, initializer=_init_worker, initargs=(task,))

    def map_items(items: Iterable[Item]) -> Iterator[Result]:
        with _without_interrupts():  # this starts the workers
            return pool.map(_run, items, chunksize=8)

    try:
        yield map_items
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, as it is when memory runs out: use fewer workers (workers=N)"
        ) from error
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM to the end of the block, also for the processes that it starts.

    While a process is forked, libraries run functions in it whose exceptions Python prints and drops, and
    with them the one of a signal. Blocked signals would still reach another thread, and from there the
    handlers in this one, so those wait as well. The processes that are started inherit what is blocked.
    """
    received = list[int]()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    handlers = {n: signal.signal(n, lambda number, _: received.append(number)) for n in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for signal_number in received:
        signal.raise_signal(signal_number)


def _init_worker(task: Callable[[Any], Any]) -> None:
    """Set up a worker: it ignores Ctrl-C, removes its temporary files on SIGTERM, exits with its parent."""
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    exit_with_parent()


def _end(*_: Any) -> None:
    """End the item that is in work, if there is one, so that its files are removed; then the process.

    The executor would catch the exception and wait for the next item, for ever if another worker ended while
    it held the lock of the queue: so the process ends here, or in `_run`.
    """
    if not _is_busy:
        os._exit(TERMINATED)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the removal of files
    raise SystemExit(TERMINATED)


def _run(item: Any) -> Any:
    global _is_busy
    try:
        _is_busy = True
        return _task(item)
    except SystemExit:
        os._exit(TERMINATED)
    finally:
        _is_busy = False
