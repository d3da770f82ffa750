"""Scores and the table; the command on untrained models."""

import json
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.cli.config.compose import compose
from ldm.cli.config.instantiate import instantiate
from ldm.cli.training import run_config
from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.write_shards import write_shards
from ldm.evaluation.demo.alignment import wilson_interval
from ldm.evaluation.demo.metrics import Metric
from ldm.interop import model_file
from studies import CONFIGS, conditional_tasks
from studies.conditional_tasks import Result, Score, table
from studies.training_log import TrainingSummary
from tests.support.sampling_models import TINY

UNCONDITIONAL = ["conditioner=unconditional", "denoiser.context_channels=null"]
WEAK = "demo_unconditional_weak"


def test_a_proportion_has_a_wilson_interval_and_other_means_a_normal_one() -> None:
    values = torch.tensor([1.0] * 30 + [0.0] * 10)
    proportion, mean = (Score.from_values(values, is_proportion) for is_proportion in (True, False))
    assert (proportion.mean, proportion.low, proportion.high) == (0.75, *wilson_interval(30, 40))
    assert mean.mean == 0.75 and mean.high - 0.75 == pytest.approx(0.75 - mean.low)
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 2 + 5
    score = Score.from_values(values, is_proportion=False)
    assert score.high - score.low == pytest.approx(2 * 1.96 * 2 / 100, rel=0.05)


@pytest.mark.parametrize(
    ("null", "samples", "ceiling", "closed"), [(0.2, 0.8, 1.0, 75), (80.0, 20.0, 0.0, 75)]
)
def test_the_gap_is_between_null_and_ceiling(null, samples, ceiling, closed) -> None:
    result = Result("correct", 10, *(Score(x, x - 0.1, x + 0.1) for x in (samples, null, ceiling)))
    assert round(100 * result.gap_closed) == closed
    assert f"| {closed} % | yes |" in table({"class": result})


def test_without_a_gap_none_of_it_is_closed() -> None:
    result = Result("correct", 10, *[Score(0.5, 0.4, 0.6)] * 3, baselines={"bicubic": Score(0.3, 0.2, 0.4)})
    assert result.gap_closed is None
    assert table({"class": result}).endswith("| 0.5 (0.4 – 0.6) |  | no |")
    assert "; bicubic 0.3 (0.2 – 0.4) |" in table({"class": result})


def test_overlapping_intervals_are_not_separated() -> None:
    scores = [Score(x, x - 0.3, x + 0.3) for x in (0.6, 0.2, 1.0)]
    result = Result("correct", 10, *scores, training=TrainingSummary(1100, 123.4, None))
    assert table({"class": result}).endswith("| 50 % | no |")
    assert "| class | 1,100 | 123 | 10 | correct |" in table({"class": result})


def test_every_task_has_a_metric_and_a_way_to_show_its_condition() -> None:
    cfg = compose("conditional_tasks", ["out=a"], CONFIGS)
    for name, task in cfg.tasks.items():
        assert isinstance(instantiate(task.metric), Metric) and callable(instantiate(task.show))
        data = compose("train", [f"experiment=demo/{name}"]).data
        assert "data" in task or "latents" not in data.val_shards, "scoring needs images, not latents"


def save_run(runs: Path, name: str, *words: str) -> None:
    """Save the files of a training run, with an untrained model."""
    torch.manual_seed(0)
    cfg = compose("train", [*TINY, "denoiser.attention_levels=[]", *words])
    model, config = instantiate(cfg.stage.model), OmegaConf.to_container(cfg.stage.model, resolve=True)
    header = {"step": "20", "size": "64", **model.describe_frozen_weights()}
    path = runs / name / "latent_diffusion.safetensors"
    model_file.save(path, model.state_dict(), config, "latent_diffusion", header)
    data = OmegaConf.to_container(cfg.data, resolve=True)
    run_config.write({"data": data, "trainer": {"max_steps": 20}, "stage": {}}, runs / name)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder with a shard of six scenes."""
    folder = tmp_path_factory.mktemp("images")
    write_shards(DemoScenes("val", 6), folder)
    return folder


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: Path, capsys):
    """Return a function that runs the command and returns its exit status and output."""

    def run(*typed: str) -> tuple[int, str]:
        words = [f"out={tmp_path / 'out'}", f"runs={tmp_path / 'runs'}", "steps=2", "batch_size=3", "shown=2"]
        words += [f"tasks.{name}.data.val_shards={images}" for name in ("text", "unconditional")]
        monkeypatch.setattr(sys, "argv", ["conditional_tasks", *words, "device=cpu", *typed])
        status = 0
        try:
            conditional_tasks.main()
        except SystemExit as error:
            status = int(error.code or 0)
        out, err = capsys.readouterr()
        return status, out + err

    return run


def test_trained_tasks_are_scored_once_and_others_are_listed(shell, tmp_path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    save_run(runs, "demo_text")
    (runs / "demo_text" / "metrics.csv").write_text("step,speed/images_per_second\n10,8\n20,8\n")
    save_run(runs, "demo_unconditional", *UNCONDITIONAL)
    status, output = shell("n=4")
    assert status == 0, output
    weak = "experiment=demo/unconditional trainer.max_steps=400 trainer.val_check_interval=400"
    assert f"unconditional is not trained: python train.py {weak} run={runs}/{WEAK}\n" in output
    assert f"class is not trained: python train.py experiment=demo/class run={runs}/demo_class" in output
    first = json.loads((out / "conditional_tasks.json").read_text())
    assert list(first) == ["text"]
    assert first["text"]["n"] == 4, "whole batches would give 6"
    assert "| text | 20 | 10 | 4 | all correct | 0 (" in (out / "conditional_tasks.md").read_text()

    save_run(runs, WEAK, *UNCONDITIONAL)
    status, output = shell("n=4")
    assert status == 0, output
    assert "text: already scored" in output and "unconditional: valid scene" in output
    both = json.loads((out / "conditional_tasks.json").read_text())
    assert both["text"] == first["text"] and both["unconditional"]["n"] == 4
    with Image.open(out / "conditional_tasks.png") as sheet:
        assert sheet.height == 2 * (2 * (64 + 4) + 4)


def test_a_smaller_set_is_scored_whole_and_new_weights_again(shell, tmp_path) -> None:
    save_run(tmp_path / "runs", "demo_text")
    assert shell("n=9")[0] == 0
    assert json.loads((tmp_path / "out" / "conditional_tasks.json").read_text())["text"]["n"] == 6
    save_run(tmp_path / "runs", "demo_text")
    status, output = shell("n=9")
    assert status == 0 and "already scored" not in output


def test_without_a_trained_task_there_is_nothing_to_score(shell, tmp_path) -> None:
    status, output = shell()
    assert status == 2 and f"no demo task is trained in {tmp_path / 'runs'}" in output
