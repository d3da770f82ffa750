"""Metrics of a run as one CSV file."""

from ldm.callbacks.loggers.csv import CSVLogger


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
