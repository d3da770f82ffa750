"""A run's log is read from its folder."""

from pathlib import Path

import pytest

from ldm.cli.training import run_config, run_log
from ldm.errors import UserError


def test_points_of_each_metric_and_the_config(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/loss\n10,2.5,\n20,,1.5\n")
    run_config.write({"seed": 3}, tmp_path)
    log = run_log.read(tmp_path)
    assert log.name == str(tmp_path) and log.config == {"seed": 3}
    assert log.columns == {"train/loss": [(10, 2.5)], "val/loss": [(20, 1.5)]}


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere has no metrics.csv"):
        run_log.read(tmp_path / "nowhere")


def test_incomplete_rows_are_left_out_and_other_tables_are_refused(tmp_path: Path, caplog) -> None:
    (tmp_path / "metrics.csv").write_text("step,val/loss\n10,1.5\n,2.5\n30,3")
    assert run_log.read(tmp_path).columns == {"val/loss": [(10, 1.5)]} and "left out 2" in caplog.text
    (tmp_path / "metrics.csv").write_text("loss\n1\n")
    with pytest.raises(UserError, match="no column step"):
        run_log.read(tmp_path)
