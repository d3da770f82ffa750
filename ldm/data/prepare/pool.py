"""A pool of worker processes that ends at once, without leaving a process or a temporary file."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, TypeVar

from ldm.data.loading.workers import exit_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")
_has_ended = False


@contextmanager
def parallel_map(num_workers: int) -> Iterator[Callable[..., Any]]:
    """Yield a `map` over this many processes that keeps the order; 0 maps in this process.

    If the block raises, as for Ctrl-C, the items that workers are busy with are not waited for.
    """
    if num_workers == 0:
        yield map
        return
    pool = ProcessPoolExecutor(num_workers, initializer=init_pool_worker)

    def map_items(task: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return pool.map(partial(_run, task), items, chunksize=8)

    try:
        yield map_items
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def init_pool_worker() -> None:
    """Set up a worker: it ignores Ctrl-C, removes its temporary files on SIGTERM, exits with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    exit_with_parent()


def _end(*_: Any) -> NoReturn:
    """End the current item; the executor catches the exception, so later items have to look at the flag."""
    global _has_ended
    _has_ended = True
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the removal of files
    raise SystemExit


def _run(task: Callable[[Item], Result], item: Item) -> Result:
    if _has_ended:
        raise SystemExit
    return task(item)
