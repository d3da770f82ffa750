"""Steps are planned from a speed trial, other step counts scale with them, and nothing is done twice."""

import json
import sys
from pathlib import Path

import pytest

from ldm.cli.config.compose import compose
from ldm.cli.training import run_config
from ldm.errors import UserError
from ldm.interop import model_file
from studies import equal_time

OVERRIDES = ["data.shards=shards"]


def words(settings: dict) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


def test_step_counts_scale_with_the_length_of_training() -> None:
    cfg = compose("train", ["experiment=demo/ae_gan", *OVERRIDES])
    scaled = equal_time.scale_steps(cfg, cfg.trainer.max_steps // 4)
    shorter = compose("train", ["experiment=demo/ae_gan", *OVERRIDES, *words(scaled)])
    assert shorter.trainer.max_steps == 500 and shorter.stage.adversary.start == cfg.adversary.start // 4
    assert shorter.learning_rate.warmup_steps == 25 and shorter.callbacks.checkpoint.every_n_steps == 250
    text = compose("train", ["experiment=demo/text", *OVERRIDES])
    assert "adversary.start" not in equal_time.scale_steps(text, 100)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The settings of every training run that would have started; each writes a log and a model file."""
    runs: list[dict] = []

    def run_training(name: str, run: Path, overrides: list[str], settings: dict) -> None:
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

    monkeypatch.setattr(equal_time, "run_training", run_training)
    return runs


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *typed: str) -> None:
    monkeypatch.setattr(sys, "argv", ["equal_time", *typed, "--out", str(out)])
    equal_time.main()


def test_steps_are_planned_from_a_trial_and_nothing_is_done_twice(
    tmp_path, monkeypatch, started, capsys
) -> None:
    run(monkeypatch, tmp_path, "demo/ae", *OVERRIDES, "--seconds", "100")
    trial, whole = started
    assert trial["trainer.max_steps"] == equal_time.TRIAL_STEPS and trial["callbacks.checkpoint"] == "null"
    assert whole["trainer.max_steps"] == 300, "48 images/s by the harmonic mean, 16 per step"
    assert whole["resume"] == "auto"
    run(monkeypatch, tmp_path / "short", "demo/ae", *OVERRIDES, "--seconds", "1", "--trial", "20")
    assert [training["trainer.max_steps"] for training in started[2:]] == [20, 20], (
        "at least those of the trial"
    )
    started[2:] = []
    run(monkeypatch, tmp_path, "demo/ae", *OVERRIDES, "--seconds", "100")
    output = capsys.readouterr().out
    assert len(started) == 2 and "demo/ae: 300 steps are done" in output
    message = next(line for line in output.splitlines() if "steps took" in line)
    assert "300 steps took 1667 s" in message and "100 s" in message, "of log rows at 1, 32 and 96 images/s"
    assert json.loads((tmp_path / "demo/ae" / "equal_time.json").read_text()) == {
        "seconds": 100,
        "given": OVERRIDES,
        "steps": 300,
    }


def test_all_trials_come_before_any_training(tmp_path, monkeypatch, started) -> None:
    run(monkeypatch, tmp_path, "demo/ae", "demo/ae_gan", *OVERRIDES, "--seconds", "100")
    order = [(training["name"], training["trainer.max_steps"]) for training in started]
    trials = [("demo/ae", equal_time.TRIAL_STEPS), ("demo/ae_gan", equal_time.TRIAL_STEPS)]
    assert order == [*trials, ("demo/ae", 300), ("demo/ae_gan", 300)]


def test_no_trial_starts_if_a_later_run_has_another_plan(tmp_path, monkeypatch, started) -> None:
    run(monkeypatch, tmp_path, "demo/ae", *OVERRIDES, "--seconds", "100")
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "demo/ae_gan", "demo/ae", *OVERRIDES, "--seconds", "90")
    assert len(started) == 2


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["demo/ae", *OVERRIDES, "--seconds", "90"], "planned for 100 seconds, not 90: give another --out"),
        (
            ["demo/ae", *OVERRIDES, "seed=1", "--seconds", "100"],
            "planned with data.shards=shards, not with data.shards=shards seed=1: give another --out",
        ),
        (
            ["demo/ae", "--seconds", "100"],
            "with data.shards=shards, not with no overrides: give another --out",
        ),
        (
            ["demo/ae", "--seconds", "90", "--trial", "19"],
            "--trial 19 is too short to measure a speed: give 20",
        ),
        (["data=emoji", "--seconds", "90"], "got 0 experiments"),
        (["demo_aee", "--seconds", "100"], "demo/ae"),
    ],
)
def test_mistakes_are_reported_in_a_sentence(tmp_path, monkeypatch, started, capsys, typed, message) -> None:
    run(monkeypatch, tmp_path, "demo/ae", *OVERRIDES, "--seconds", "100")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, tmp_path, *typed)
    assert stop.value.code == 2 and message in capsys.readouterr().err and len(started) == 2


def test_a_speed_needs_two_log_rows(tmp_path) -> None:
    (tmp_path / "metrics.csv").write_text("step,speed/images_per_second\n50,32\n")
    with pytest.raises(UserError, match="less than twice: .*stage.log_every"):
        equal_time.images_per_second(tmp_path)
