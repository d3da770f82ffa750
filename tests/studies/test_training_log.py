"""The length of a run, and the drop of PSNR after the discriminator starts."""

import csv
from pathlib import Path

import pytest

from ldm.cli.training import run_config
from studies import training_log
from studies.training_log import PSNRDrop, find_psnr_drop


def test_a_drop_is_measured_from_the_best_psnr_before_the_start() -> None:
    steady = [(100, 20.0), (200, 30.0), (300, 29.2), (400, 31.0)]
    drop = find_psnr_drop(steady, 200)
    assert drop is not None and drop.depth == pytest.approx(0.8) and drop.steps_below == 0
    unsteady = [(100, 30.0), (200, 29.0), (300, 28.0), (400, 28.9), (500, 28.5), (600, 30.0), (700, 28.0)]
    assert find_psnr_drop(unsteady, 200) == PSNRDrop(2.0, 200), (
        "from step 300 to 500; a single point lasts no steps"
    )
    assert find_psnr_drop([(100, 20.0), (200, 25.0)], 100) == PSNRDrop(-5.0, 0)


@pytest.mark.parametrize("start", [1, 300])
def test_a_drop_needs_points_on_both_sides(start: int) -> None:
    """A discriminator from the first step on, as in ae_vq_f4, and a run that has not reached its start."""
    assert find_psnr_drop([(100, 20.0), (300, 25.0)], start) is None and find_psnr_drop([], start) is None


def test_a_run_too_short_to_log_its_speed_has_no_duration(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,val/psnr\n2,20\n")
    config = {"trainer": {"max_steps": 2}, "data": {"global_batch_size": 10}, "stage": {}}
    run_config.write(config, tmp_path)
    summary = training_log.summarize(tmp_path)
    assert summary == training_log.TrainingSummary(2, None, None)
    assert training_log.table({"a": summary}).splitlines()[2] == "| a | 2 |  |  |  |"


@pytest.mark.parametrize("start", [None, 40])
def test_a_run_is_summarized_from_its_folder(tmp_path: Path, start: int | None) -> None:
    rows = [{"step": 20, "speed/images_per_second": 100, "val/psnr": 20},
            {"step": 40, "speed/images_per_second": 50, "val/psnr": 25},
            {"step": 60, "speed/images_per_second": 50, "val/psnr": 24.5}]  # fmt: skip
    with open(tmp_path / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    adversary = None if start is None else {"start": start}
    config = {
        "trainer": {"max_steps": 60},
        "data": {"global_batch_size": 10},
        "stage": {"adversary": adversary},
    }
    run_config.write(config, tmp_path)
    summary = training_log.summarize(tmp_path)
    assert summary is not None and summary.steps == 60 and summary.seconds == pytest.approx(2 + 4 + 4)
    assert summary.psnr_drop == (None if start is None else PSNRDrop(0.5, 0))
    line = training_log.table({"a": summary}).splitlines()[2]
    assert line == ("| a | 60 | 10 |  |  |" if start is None else "| a | 60 | 10 | 0.50 | 0 |")
    assert training_log.summarize(tmp_path / "nothing") is None
