"""A run that hangs ends with its stack; any other leaves no file."""

import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import create_autospec

import pytest
from lightning import Callback, Trainer

from ldm.callbacks.watchdog import Watchdog
from tests.support import tiny

HANGS = """
import sys, time
from lightning import Callback, Trainer
from ldm.callbacks.watchdog import Watchdog
from tests.support import tiny

class Hang(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 1:
            hangs_here()

def hangs_here():
    time.sleep(60)

tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, [Watchdog(sys.argv[1], seconds=2, grace=1), Hang()])
"""


def test_a_step_that_hangs_ends_with_its_stack(tmp_path):
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", HANGS, str(tmp_path)], cwd=root, timeout=55)
    assert done.returncode == -signal.SIGALRM
    assert "hangs_here" in (tmp_path / "rank0.txt").read_text()


class RecordTimer(Callback):
    """Records the time left in each step, and fails in one of them."""

    def __init__(self, fails: int) -> None:
        self.fails, self.left = fails, []

    def on_train_batch_start(self, trainer, *_) -> None:
        self.left.append(signal.getitimer(signal.ITIMER_REAL)[0])
        if trainer.global_step == self.fails:
            raise RuntimeError("an unrelated error")


@pytest.mark.parametrize("fails", [2, -1])
def test_the_timer_stops_when_the_run_ends(fails, tmp_path):
    timer = RecordTimer(fails)
    watchdog = Watchdog(str(tmp_path / "stacks"), seconds=100, grace=7)
    try:
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, [watchdog, timer])
    except RuntimeError:
        assert fails == 2
    assert len(timer.left) == (3 if fails == 2 else 4) and all(106 < left <= 107 for left in timer.left)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0) and not (tmp_path / "stacks").exists()


def test_ranks_that_end_at_once_can_both_remove_the_folder(tmp_path, monkeypatch):
    """One finds another rank's file in it; the other finds it removed."""
    first, second = (Watchdog(str(tmp_path / "stacks")) for _ in range(2))
    first.on_train_start(create_autospec(Trainer, instance=True, global_rank=0), tiny.first_stage())
    second.on_train_start(create_autospec(Trainer, instance=True, global_rank=1), tiny.first_stage())
    first.teardown()
    assert [path.name for path in (tmp_path / "stacks").iterdir()] == ["rank1.txt"]
    remove = Path.rmdir

    def remove_twice(folder: Path) -> None:
        remove(folder)
        remove(folder)

    monkeypatch.setattr(Path, "rmdir", remove_twice)
    second.teardown()
    assert not (tmp_path / "stacks").exists()


def test_zero_seconds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="above 0, not 0"):
        Watchdog(str(tmp_path), seconds=0)
