"""Killed at random moments and started again by the same command: the same weights, bit for bit."""

from pathlib import Path

import pytest

from tests.trials.kill import trial


@pytest.mark.multiprocess
def test_two_ranks_killed_while_saving_end_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/dev/shm")  # another file system than the run's
    assert trial("ae", 2, kills=1, folder=tmp_path, steps=20) == 1


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("stage,ranks,kills", [("ae", 2, 20), ("text", 2, 20), ("ae", 4, 6), ("text", 4, 6)])
def test_killed_many_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, ranks: int, kills: int
) -> None:
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    assert trial(stage, ranks, kills, tmp_path, steps=60 * kills) > kills // 2


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("others", [1, 4])
def test_killed_and_gone_on_with_other_ranks_reads_the_same_samples(tmp_path: Path, others: int) -> None:
    assert trial("text", 2, 4, tmp_path, steps=240, others=others) >= 2
