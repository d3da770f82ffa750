"""Equal time: how many steps, where an experiment's moments go, and nothing done twice."""

import json
import sys
from pathlib import Path

import pytest

from ldm.cli.config.compose import compose
from ldm.cli.training import run_config
from ldm.errors import UserError
from ldm.interop import model_file
from studies import equal_time

GIVEN = ["data.shards=shards"]


def words(settings: dict) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


def test_every_moment_keeps_its_place() -> None:
    cfg = compose("train", ["experiment=demo/ae_gan", *GIVEN])
    moved = equal_time.lengthened(cfg, cfg.trainer.max_steps // 4)
    longer = compose("train", ["experiment=demo/ae_gan", *GIVEN, *words(moved)])
    assert longer.trainer.max_steps == 500 and longer.stage.adversary.start == cfg.adversary.start // 4
    assert longer.learning_rate.warmup_steps == 25 and longer.callbacks.checkpoint.every_n_steps == 250
    text = compose("train", ["experiment=demo/text", *GIVEN])
    assert "adversary.start" not in equal_time.lengthened(text, 100)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The settings of every training that would have begun; each leaves a log and a model file."""
    runs: list[dict] = []

    def start(name: str, run: Path, given: list[str], settings: dict) -> None:
        runs.append({"name": name, **settings})
        run.mkdir(parents=True, exist_ok=True)
        (run / "metrics.csv").write_text("step,speed/images_per_second\n10,1\n20,32\n30,96\n")
        config = {
            "trainer": {"max_steps": settings["trainer.max_steps"]},
            "data": {"global_batch_size": 16},
            "stage": {},
        }
        run_config.write(config, run)
        identity = {"step": str(settings["trainer.max_steps"])}
        model_file.save(run / "autoencoder.safetensors", {}, {}, "autoencoder", identity)

    monkeypatch.setattr(equal_time, "start", start)
    return runs


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *typed: str) -> None:
    monkeypatch.setattr(sys, "argv", ["equal_time", *typed, "--out", str(out)])
    equal_time.main()


def test_steps_follow_from_a_trial_and_nothing_is_done_twice(tmp_path, monkeypatch, started, capsys) -> None:
    run(monkeypatch, tmp_path, "demo/ae", *GIVEN, "--seconds", "100")
    trial, whole = started
    assert trial["trainer.max_steps"] == equal_time.TRIAL and trial["callbacks.checkpoint"] == "null"
    assert whole["trainer.max_steps"] == 300, "48 images a second by the harmonic mean, 16 a step"
    assert whole["resume"] == "auto"
    run(monkeypatch, tmp_path / "short", "demo/ae", *GIVEN, "--seconds", "1", "--trial", "20")
    assert [each["trainer.max_steps"] for each in started[2:]] == [20, 20], "no fewer than the trial's"
    started[2:] = []
    run(monkeypatch, tmp_path, "demo/ae", *GIVEN, "--seconds", "100")
    said = capsys.readouterr().out
    assert len(started) == 2 and "demo/ae: 300 steps are done" in said
    assert "demo/ae: 300 steps took 1667 s by its log, 100 s were planned" in said, "of rows at 1, 32 and 96"
    assert json.loads((tmp_path / "demo/ae" / "equal_time.json").read_text()) == {
        "seconds": 100,
        "given": GIVEN,
        "steps": 300,
    }


def test_all_trials_come_before_any_training(tmp_path, monkeypatch, started) -> None:
    run(monkeypatch, tmp_path, "demo/ae", "demo/ae_gan", *GIVEN, "--seconds", "100")
    found = [(each["name"], each["trainer.max_steps"]) for each in started]
    trials = [("demo/ae", equal_time.TRIAL), ("demo/ae_gan", equal_time.TRIAL)]
    assert found == [*trials, ("demo/ae", 300), ("demo/ae_gan", 300)]


def test_no_trial_begins_where_a_later_run_was_planned_otherwise(tmp_path, monkeypatch, started) -> None:
    run(monkeypatch, tmp_path, "demo/ae", *GIVEN, "--seconds", "100")
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "demo/ae_gan", "demo/ae", *GIVEN, "--seconds", "90")
    assert len(started) == 2


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["demo/ae", *GIVEN, "--seconds", "90"], "planned for 100 seconds, not 90: give another --out"),
        (
            ["demo/ae", *GIVEN, "seed=1", "--seconds", "100"],
            "was planned with data.shards=shards given, not data.shards=shards seed=1: give another --out",
        ),
        (["demo/ae", "--seconds", "100"], "with data.shards=shards given, not nothing: give another --out"),
        (["demo/ae", "--seconds", "90", "--trial", "19"], "a --trial of 19 steps measures nothing: give 20"),
        (["data=emoji", "--seconds", "90"], "name experiments, and give them --seconds above 0"),
        (["demo_aee", "--seconds", "100"], "demo/ae"),
    ],
)
def test_mistakes_are_sentences(tmp_path, monkeypatch, started, capsys, typed, message) -> None:
    run(monkeypatch, tmp_path, "demo/ae", *GIVEN, "--seconds", "100")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, tmp_path, *typed)
    assert stop.value.code == 2 and message in capsys.readouterr().err and len(started) == 2


def test_a_speed_needs_two_rows(tmp_path) -> None:
    (tmp_path / "metrics.csv").write_text("step,speed/images_per_second\n50,32\n")
    with pytest.raises(
        UserError, match="logged its speed less than twice: train it with a smaller stage.log_every"
    ):
        equal_time.images_a_second(tmp_path)
