"""Runs in one table and one plot."""

import csv
import math
import sys

import pytest
from PIL import Image

from ldm.cli import compare
from ldm.cli.training import run_config


@pytest.fixture
def runs(tmp_path):
    """Three runs; the second is the best."""
    for name, lr, last in (("a", 0.1, 3.0), ("b", 0.2, 1.0), ("c", 0.4, math.nan)):
        run = tmp_path / name
        rows = [
            {"step": 10 * i, "val/loss": last + 5 - i, "speed/images_per_second": 100 * i} for i in range(6)
        ]
        run.mkdir()
        with open(run / "metrics.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        stage = {"optimizer": {"lr": lr}, "seed": 0}
        changes = ["optimizer.lr: 1 -> 0.1 after step 30"] if name == "a" else []
        config = {"run": str(run), "name": name, "optimizer": {"lr": lr}, "stage": stage, "changes": changes}
        run_config.write(config, run)
    return tmp_path


@pytest.fixture
def shell(monkeypatch, capsys):
    def run(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, words)])
        status = 0
        try:
            compare.main()
        except SystemExit as error:
            status = int(error.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_the_best_comes_first_with_the_settings_that_differ(shell, runs):
    out = runs / "there" / "table.png"
    status, text, _ = shell(*(runs / n for n in "abc"), "--out", out)
    assert status == 0
    header, *rows = text.splitlines()[:4]
    assert "c: optimizer" not in text and f"{runs / 'a'}: optimizer.lr: 1 -> 0.1 after step 30\n" in text
    assert header.split("  ")[0] == "run" and "optimizer.lr" in header and "stage.optimizer.lr" not in header
    assert [row.split()[0][-1] for row in rows] == ["b", "a", "c"], "NaN comes last"
    with open(out.with_suffix(".csv"), newline="") as file:
        first = next(csv.DictReader(file))
    assert first["best val/loss"] == first["last val/loss"] == "1" and first["at step"] == "50"
    assert first["optimizer.lr"] == "0.2" and first["images/s per rank"] == "300"
    assert Image.open(out).size[0] == 1000


def test_another_metric_whose_highest_value_is_best(shell, runs):
    words = [
        *(runs / n for n in "ba"),
        "--metric",
        "speed/images_per_second",
        "--highest",
        "--out",
        runs / "x.png",
    ]
    status, text, _ = shell(*words)
    assert status == 0 and "500" in text
    status, _, err = shell(runs / "a", "--metric", "psnr", "--out", runs / "x.png")
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert "the metric psnr: give another --metric, of speed/images_per_second, val/loss" in err


def test_the_plot_path(shell, runs):
    assert f"wrote {runs}/t.png and {runs}/t.csv" in shell(runs / "a", "--out", runs / "t")[1]
    assert Image.open(runs / "t.png").size[0] == 1000
    status, _, err = shell(runs / "a", "--out", runs / "t.csv")
    assert status == 2 and "--out" in err and "t.csv" in err and ".png, .pdf, .svg" in err
    status, _, err = shell(runs / "a", "--out", "/proc/t.png")
    assert (
        status == 2
        and "/proc/t.csv cannot be written" in err
        and "choose another path" in err
        and err.count("\n") == 1
    )


def test_a_disabled_callback_is_one_column(shell, runs):
    saver = {"_target_": "ldm.callbacks.checkpoint.Checkpoint", "folder": "x", "keep": 2}
    for name, checkpoint in (("a", saver), ("b", None)):
        run_config.write({"run": name, "callbacks": {"checkpoint": checkpoint}}, runs / name)
    text = shell(runs / "a", runs / "b", "--out", runs / "x.png")[1].splitlines()
    assert text[0].split()[-1] == "callbacks.checkpoint"
    assert [line.split()[-1] for line in text[1:3]] == ["null", "Checkpoint"]


def test_a_folder_without_a_log_is_refused(shell, tmp_path):
    status, _, err = shell(tmp_path / "nowhere")
    assert status == 2 and "nowhere has no metrics.csv" in err
