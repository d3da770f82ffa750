"""Worker processes that end with the command that started them."""

import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from ldm.atomic import write_atomically
from ldm.data.prepare.pool import parallel_map


def square(x: int) -> int:
    return x * x


def write_slowly(folder: Path, number: int) -> None:
    """Start to write a file, which takes a minute."""
    with write_atomically(folder / str(number)):
        time.sleep(60)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_results_are_in_order(num_workers: int) -> None:
    with parallel_map(num_workers) as map_items:
        assert list(map_items(square, range(50))) == [x * x for x in range(50)]
    assert not multiprocessing.active_children()


def test_after_an_exception_no_item_is_waited_for_and_nothing_is_left(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), parallel_map(2) as map_items:
        map_items(partial(write_slowly, tmp_path), range(50))
        while len(os.listdir(tmp_path)) < 2:
            time.sleep(0.01)
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGINT)  # which Ctrl-C sends to all processes: the parent decides
        raise KeyboardInterrupt
    assert time.monotonic() - start < 30 and os.listdir(tmp_path) == []
    assert not multiprocessing.active_children()
