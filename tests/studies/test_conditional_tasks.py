"""The jobs' table and the words a user reads; the command on models that learned nothing."""

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
from ldm.evaluation.demo.alignment import wilson
from ldm.evaluation.demo.metrics import Metric
from ldm.interop import model_file
from studies import conditional_tasks
from studies.conditional_tasks import Result, Score, table
from studies.training_log import TrainingSummary
from tests.cli.sampling.test_files import TINY

BARE = ["conditioner=unconditional", "denoiser.context_channels=null"]
WEAK = "demo_unconditional_weak"


def test_a_share_has_wilsons_interval_and_other_numbers_the_normal_one() -> None:
    values = torch.tensor([1.0] * 30 + [0.0] * 10)
    share, number = Score.of(values, share=True), Score.of(values, share=False)
    assert (share.mean, share.low, share.high) == (0.75, *wilson(30, 40))
    assert number.mean == 0.75 and number.high - 0.75 == pytest.approx(0.75 - number.low)
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 2 + 5
    found = Score.of(values, share=False)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2 / 100, rel=0.05)


@pytest.mark.parametrize(("null", "drawn", "ceiling", "closed"), [(0.2, 0.8, 1.0, 75), (80.0, 20.0, 0.0, 75)])
def test_the_gap_is_between_null_and_ceiling(null, drawn, ceiling, closed) -> None:
    result = Result("right", 10, *(Score(x, x - 0.1, x + 0.1) for x in (drawn, null, ceiling)))
    assert round(100 * result.closed) == closed
    assert f"| {closed} % | yes |" in table({"class": result})


def test_no_gap_is_no_share_of_it() -> None:
    result = Result("right", 10, *[Score(0.5, 0.4, 0.6)] * 3, beside={"bicubic": Score(0.3, 0.2, 0.4)})
    assert result.closed is None
    assert table({"class": result}).endswith("| 0.5 (0.4 – 0.6) |  | no |")
    assert "; bicubic 0.3 (0.2 – 0.4) |" in table({"class": result})


def test_intervals_that_meet_are_said() -> None:
    scores = [Score(x, x - 0.3, x + 0.3) for x in (0.6, 0.2, 1.0)]
    trained = Result("right", 10, *scores, training=TrainingSummary(1100, 123.4, None))
    assert table({"class": trained}).endswith("| 50 % | no |")
    assert "| class | 1,100 | 123 | 10 | right |" in table({"class": trained})


def test_every_job_has_a_measure_and_something_to_show() -> None:
    cfg = compose("jobs", ["out=a"])
    for name, job in cfg.jobs.items():
        assert isinstance(instantiate(job.measure), Metric) and callable(instantiate(job.given))
        data = compose("train", [f"experiment={name}"]).data
        assert "data" in job or "latents" not in data.val_shards, "latents are no images to compare with"


def leave_run(runs: Path, name: str, *words: str) -> None:
    """What training leaves, of a model as it is built."""
    torch.manual_seed(0)
    cfg = compose("train", [*TINY, "denoiser.attention_levels=[]", *words])
    model, config = instantiate(cfg.stage.model), OmegaConf.to_container(cfg.stage.model, resolve=True)
    header = {"step": "20", "size": "64", **model.identity()}
    path = runs / name / "latent_diffusion.safetensors"
    model_file.save(path, model.state_dict(), config, "latent_diffusion", header)
    data = OmegaConf.to_container(cfg.data, resolve=True)
    run_config.write({"data": data, "trainer": {"max_steps": 20}, "stage": {}}, runs / name)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Six scenes."""
    folder = tmp_path_factory.mktemp("images")
    write_shards(DemoScenes("val", 6), folder)
    return folder


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: Path, capsys):
    """Runs the command; its exit status and what it printed."""

    def run(*typed: str) -> tuple[int, str]:
        words = [f"out={tmp_path / 'out'}", f"runs={tmp_path / 'runs'}", "steps=2", "batch_size=3", "shown=2"]
        words += [f"jobs.{name}.data.val_shards={images}" for name in ("text", "unconditional")]
        monkeypatch.setattr(sys, "argv", ["jobs", *words, "device=cpu", *typed])
        status = 0
        try:
            conditional_tasks.main()
        except SystemExit as error:
            status = int(error.code or 0)
        out, err = capsys.readouterr()
        return status, out + err

    return run


def test_what_is_there_is_scored_once_and_what_is_not_is_said(shell, tmp_path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    leave_run(runs, "demo_text")
    (runs / "demo_text" / "metrics.csv").write_text("step,speed/images_per_second\n10,8\n20,8\n")
    leave_run(runs, "demo_unconditional", *BARE)
    status, said = shell("n=4")
    assert status == 0, said
    weak = "experiment=demo/unconditional trainer.max_steps=400 trainer.val_check_interval=400"
    assert f"unconditional is not trained: python train.py {weak} run={runs}/{WEAK}\n" in said
    assert f"class is not trained: python train.py experiment=demo/class run={runs}/demo_class" in said
    first = json.loads((out / "jobs.json").read_text())
    assert list(first) == ["text"]
    assert first["text"]["n"] == 4, "whole batches would be 6"
    assert "| text | 20 | 10 | 4 | all right | 0 (" in (out / "jobs.md").read_text()

    leave_run(runs, WEAK, *BARE)
    status, said = shell("n=4")
    assert status == 0, said
    assert "text: scored before" in said and "unconditional: legible" in said
    both = json.loads((out / "jobs.json").read_text())
    assert both["text"] == first["text"] and both["unconditional"]["n"] == 4
    with Image.open(out / "jobs.png") as sheet:
        assert sheet.height == 2 * (2 * (64 + 4) + 4)


def test_a_small_set_and_other_weights_are_scored_anew(shell, tmp_path) -> None:
    leave_run(tmp_path / "runs", "demo_text")
    assert shell("n=9")[0] == 0
    assert json.loads((tmp_path / "out" / "jobs.json").read_text())["text"]["n"] == 6
    leave_run(tmp_path / "runs", "demo_text")
    status, said = shell("n=9")
    assert status == 0 and "scored before" not in said


def test_nothing_to_score_is_a_mistake(shell, tmp_path) -> None:
    status, said = shell()
    assert status == 2 and f"no demo job has been trained into {tmp_path / 'runs'}" in said
