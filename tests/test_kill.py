"""Stopped at random moments and started again by the same command: the same weights, bit for bit."""

import signal
from pathlib import Path

import pytest

from tests.support.trials.job import Job, kill, wait_until
from tests.support.trials.kill import ELASTIC, KILLS, TERMINATIONS, TOLERANCE, Trial, command


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_ranks_killed_while_saving_end_with_the_same_weights(tmp_path: Path) -> None:
    assert len(Trial("ae", 2, stops=1, steps_per_stop=20).run(tmp_path).effective) == 1


@pytest.mark.multiprocess
def test_a_rank_that_hangs_ends_the_job_with_every_ranks_stack(tmp_path: Path) -> None:
    hang = ("+callbacks.hang={_target_: tests.support.ranks.Hang, step: 3}",)
    hang += ("callbacks.watchdog.seconds=20", "+callbacks.watchdog.grace=2")
    job = Job((*command("ae", tmp_path, 1000), *hang), tmp_path / "run", 2)
    processes = job.start()
    try:
        wait_until(lambda: all(process.exitcode is not None for process in processes), seconds=120)
        assert [process.exitcode for process in processes] == [-signal.SIGALRM] * 2
    finally:
        kill(processes)
    stacks = [(job.run / "stacks" / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert all("Timeout (0:00:20)!" in stack for stack in stacks) and "in training_step" in stacks[0]
    assert "ranks.py" in stacks[1] and "in on_train_batch_start" in stacks[1]


def name(trial: Trial) -> str:
    return f"{trial.stage}-{trial.ranks}-{trial.other_ranks or trial.ranks}-{trial.signal_name}"


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("trial", KILLS + TERMINATIONS + ELASTIC, ids=name)
def test_stopped_many_times(tmp_path: Path, trial: Trial) -> None:
    result = trial.run(tmp_path)
    print(f"\n{result}")
    assert len(result.effective) > trial.stops // 2
    assert result.num_hung == 0 and result.max_error <= TOLERANCE
    if trial.signal_name == "SIGTERM":
        assert max(stop.seconds for stop in result.effective) < 5
