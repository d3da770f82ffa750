"""Metrics of a run as one CSV file."""

import csv

import pytest

from ldm.callbacks.loggers.csv import CSVLogger, read_rows
from ldm.errors import UserError
from tests.support.disks import fill, small_disk


def steps(path) -> list[int]:
    with open(path, newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_a_row_per_call_and_a_column_per_name(tmp_path):
    log = CSVLogger(str(tmp_path / "run" / "metrics.csv"))
    log.log_metrics({"loss": 0.1}, 5)
    log.log_metrics({"loss": 1 / 3, "rate": 2.0}, 10)
    log.log_metrics({"val": 7.0}, 10)
    assert (tmp_path / "run" / "metrics.csv").read_text().split() == [
        "step,loss,rate,val",
        "5,0.1,,",
        f"10,{1 / 3!r},2.0,",
        "10,,,7.0",
    ]


def test_a_resumed_run_replaces_the_rows_it_repeats(tmp_path):
    path = tmp_path / "metrics.csv"
    before = CSVLogger(str(path))
    for step in (1, 2, 3, 4):
        before.log_metrics({"loss": float(step), "rate": 1.0}, step)
    resumed = CSVLogger(str(path))
    resumed.log_metrics({"loss": 33.0, "new": 5.0}, 3)
    resumed.log_metrics({"loss": 44.0}, 4)
    assert path.read_text().split() == [
        "step,loss,rate,new",
        "1,1.0,1.0,",
        "2,2.0,1.0,",
        "3,33.0,,5.0",
        "4,44.0,,",
    ]


def test_the_constructor_writes_nothing(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,2.0\n")
    CSVLogger(str(path)).log_hyperparams({"lr": 1})
    assert path.read_text() == "step,loss\n1,2.0\n"


def test_no_row_is_lost_while_the_disk_is_full(tmp_path, caplog):
    """Neither where a row is appended nor where a new column makes it write the file again."""
    with small_disk(tmp_path / "disk", 64) as disk:
        path = disk / "metrics.csv"
        log = CSVLogger(str(path))
        for step in range(1, 100):
            log.log_metrics({"loss": 1 / step}, step)
        filler = fill(disk)
        before = path.read_text()
        for step in range(100, 400):
            log.log_metrics({"loss": 1 / step, **({"new": 1.0} if step > 350 else {})}, step)
        rows = read_rows(path)
        assert path.read_text().startswith(before) and path.read_text().endswith("\n")
        assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1)) and len(rows) < 399
        assert {p.name for p in disk.iterdir()} == {"metrics.csv", "fill"}
        assert caplog.text.count("metrics.csv cannot be written (No space left on device): its rows are") == 1
        filler.unlink()
        log.log_metrics({"loss": 0.5}, 400)
        assert steps(path) == list(range(1, 401))
        assert path.read_text().splitlines()[-1] == "400,0.5," and "incomplete" not in caplog.text


def test_the_last_rows_are_tried_again_at_the_end(tmp_path, caplog):
    with small_disk(tmp_path / "disk", 64) as disk:
        path = disk / "metrics.csv"
        log = CSVLogger(str(path))
        log.log_metrics({"loss": 1.0}, 1)
        filler = fill(disk)
        log.log_metrics({"new": 2.0}, 2)
        log.finalize("failed")
        assert "it lacks 1 row(s), from step 2 on" in caplog.text and steps(path) == [1]
        filler.unlink()
        log.finalize("success")
        assert path.read_text().split() == ["step,loss,new", "1,1.0,", "2,,2.0"]


def test_a_removed_file_gets_its_header_again(tmp_path):
    log = CSVLogger(str(tmp_path / "metrics.csv"))
    log.log_metrics({"loss": 1.0, "rate": 2.0}, 1)
    (tmp_path / "metrics.csv").unlink()
    log.log_metrics({"loss": 3.0}, 2)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,loss", "2,3.0"]


DAMAGED = {
    "a row without a step": ("step,loss\n1,2.0\n,3.0\n3,4.0\n", [1, 3], 1),
    "a last row that was cut": ("step,loss\n1,2.0\n2,3.0\n3,4.", [1, 2], 1),
    "a last row cut to its step": ("step,loss\n1,2.0\n2", [1], 1),
    "rows that run together": ("step,loss\n1,2.0\n2,3.03,4.0\n4,5.0\n", [1, 4], 1),
    "a block of zeros": ("step,loss\n1,2.0\n" + 64 * "\0", [1], 0),
    "zeros and then rows": ("step,loss\n1,2.0\n" + 64 * "\0" + "\n3,4.0\n", [1, 3], 0),
    "a step that is no number": ("step,loss\n1,2.0\nx,3.0\n", [1], 1),
    "a fraction of a step": ("step,loss\n1,2.0\n1.5,3.0\n", [1], 1),
    "a step in infinity": ("step,loss\n1,2.0\ninf,3.0\n", [1], 1),
    "a value that is no number": ("step,loss\n1,2.0\n2,high\n", [1], 1),
    "a second header": ("step,loss\n1,2.0\nstep,loss\n2,3.0\n", [1, 2], 1),
    "bytes that are not UTF-8": (b"step,loss\n1,2.0\n2,\xff\n", [1], 1),
    "steps as floats": ("step,loss\n1.0,2.0\n2.0,nan\n", [1, 2], 0),
    "short rows": ("step,loss,rate\n1,2.0\n2,3.0\n", [1, 2], 0),
    "Windows line ends": ("step,loss\r\n1,2.0\r\n2,3.0\r\n", [1, 2], 0),
    "only a header": ("step,loss\n", [], 0),
    "nothing": ("", [], 0),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_rows_are_left_out_with_a_warning(damage, tmp_path, caplog):
    content, expected, num_left_out = DAMAGED[damage]
    path = tmp_path / "metrics.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert [float(row["step"]) for row in read_rows(path)] == expected
    assert (f"left out {num_left_out} row(s)" in caplog.text) == bool(num_left_out)
    log = CSVLogger(str(path))
    log.log_hyperparams({})
    log.log_metrics({"loss": 9.0}, 7)
    log.log_metrics({"new": 9.0}, 8)
    assert [float(row["step"]) for row in read_rows(path)] == [*expected, 7, 8]


def test_another_kind_of_table_is_refused_before_training(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss\n1,2.0\n")
    with pytest.raises(
        UserError, match="metrics.csv is not a table of metrics .it has no column step.: move"
    ):
        CSVLogger(str(path)).log_hyperparams({})
    assert path.read_text() == "epoch,loss\n1,2.0\n"
