"""Stopped at random moments and started again by the same command: the same weights, bit for bit."""

import signal
from pathlib import Path

import pytest

from tests.support.trials.job import Job, kill, until
from tests.support.trials.kill import ASKED, CLOSE, ELASTIC, KILLS, Trial, words


@pytest.mark.multiprocess
def test_two_ranks_killed_while_saving_end_with_the_same_weights(tmp_path: Path) -> None:
    assert len(Trial("ae", 2, stops=1, steps_a_stop=20).run(tmp_path).hit) == 1


@pytest.mark.multiprocess
def test_a_rank_that_hangs_ends_the_job_with_every_ranks_stack(tmp_path: Path) -> None:
    hang = ("+callbacks.hang={_target_: tests.support.ranks.Hang, step: 3}",)
    hang += ("callbacks.watchdog.seconds=10", "+callbacks.watchdog.grace=2")
    job = Job((*words("ae", tmp_path, 1000), *hang), tmp_path / "run", 2)
    started = job.start()
    try:
        until(lambda: all(rank.exitcode is not None for rank in started), seconds=120)
        assert [rank.exitcode for rank in started] == [-signal.SIGALRM] * 2
    finally:
        kill(started)
    said = [(job.run / "stacks" / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert all("Timeout (0:00:10)!" in text for text in said) and "in training_step" in said[0]
    assert "ranks.py" in said[1] and "in on_train_batch_start" in said[1]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "one",
    KILLS + ASKED + ELASTIC,
    ids=lambda one: f"{one.stage}-{one.ranks}-{one.others or one.ranks}-{one.told}",
)
def test_stopped_many_times(tmp_path: Path, one: Trial) -> None:
    found = one.run(tmp_path)
    print(f"\n{found}")
    assert len(found.hit) > one.stops // 2 and found.hung == 0 and found.apart <= CLOSE
    if one.told == "SIGTERM":
        assert max(stopped.seconds for stopped in found.hit) < 5
