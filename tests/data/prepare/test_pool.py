"""Worker processes that end with the command that started them."""

import multiprocessing
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from ldm.atomic import write_atomically
from ldm.data.prepare.pool import parallel_map
from ldm.errors import UserError


def square(x: int) -> int:
    return x * x


def write_slowly(folder: Path, number: int) -> None:
    """Start to write a file, which takes a minute."""
    with write_atomically(folder / str(number)):
        time.sleep(60)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_results_are_in_order(num_workers: int) -> None:
    with parallel_map(square, num_workers) as map_items:
        assert list(map_items(range(50))) == [x * x for x in range(50)]
    assert not multiprocessing.active_children()


def test_after_an_exception_no_item_is_waited_for_and_nothing_is_left(tmp_path: Path) -> None:
    start = time.monotonic()
    task = partial(write_slowly, tmp_path)
    with pytest.raises(KeyboardInterrupt), parallel_map(task, 2) as map_items:
        map_items(range(50))
        while len(os.listdir(tmp_path)) < 2:
            time.sleep(0.01)
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGINT)  # which Ctrl-C sends to all processes: the parent decides
        raise KeyboardInterrupt
    assert time.monotonic() - start < 30 and os.listdir(tmp_path) == []
    assert not multiprocessing.active_children()


def sleep_at_zero(x: int) -> None:
    time.sleep(60 if x == 0 else 0)


@pytest.mark.parametrize("signalled", [1, 2])
def test_a_worker_never_waits_for_the_lock_of_one_that_has_ended(signalled: int) -> None:
    """SIGTERM reaches some or all processes of a job; the idle one ends with the lock of the queue."""
    start = time.monotonic()
    with pytest.raises(SystemExit), parallel_map(sleep_at_zero, 2) as map_items:
        map_items(range(8))  # one chunk, so that the other worker is idle
        time.sleep(0.5)
        for worker in multiprocessing.active_children()[:signalled]:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGTERM)
        time.sleep(0.2)
        raise SystemExit
    assert time.monotonic() - start < 30 and not multiprocessing.active_children()


def test_a_killed_worker_is_reported_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"a worker process was killed, .*: use fewer workers \(workers=N\)"):
        with parallel_map(sleep_at_zero, 2) as map_items:
            results = map_items(range(8))
            multiprocessing.active_children()[0].kill()
            list(results)
    assert not multiprocessing.active_children()


HOOKS = {
    "before": [],
    "after_in_child": [],
}  # a function that is called at a fork stays until the process ends
for _name, _functions in HOOKS.items():
    os.register_at_fork(**{_name: lambda functions=_functions: [function() for function in functions]})


@pytest.mark.parametrize("has_thread", [False, True])
def test_ctrl_c_while_a_worker_is_forked_is_not_lost(has_thread: bool, capfd) -> None:
    """Libraries run functions then, whose exceptions Python prints and drops. A thread may get the signal."""
    before, end = signal.signal(signal.SIGINT, signal.default_int_handler), threading.Event()
    if has_thread:
        threading.Thread(target=end.wait).start()
    HOOKS["before"].append(lambda: HOOKS["before"].clear() or os.kill(os.getpid(), signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt), parallel_map(square, 2) as map_items:
            list(map_items(range(50)))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        end.set()
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "" and not multiprocessing.active_children()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_does_not_run_its_parents_handlers(number: int, capfd) -> None:
    """It ignores Ctrl-C, and ends without a word by SIGTERM, also right after it was forked."""

    def leave(*_: object) -> None:
        raise SystemExit

    before = signal.signal(number, leave)
    HOOKS["after_in_child"].append(lambda: os.kill(os.getpid(), number))
    try:
        with parallel_map(square, 2) as map_items:
            assert list(map_items(range(50))) == [x * x for x in range(50)] and number == signal.SIGINT
    except UserError:
        assert number == signal.SIGTERM
    finally:
        HOOKS["after_in_child"].clear()
        signal.signal(number, before)
    assert capfd.readouterr().err == "" and not multiprocessing.active_children()
