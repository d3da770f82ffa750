"""The experiments have U-Nets of equal size; the command on untrained models."""

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
from ldm.interop import model_file
from ldm.model import LatentDiffusion
from studies import downsampling_factors, equal_time
from studies.downsampling_tables import PAPER, paper_table
from tests.support import tiny
from tests.support.sampling_models import TINY

SPACES = {"demo/pixels": 1, "demo/text_f2": 2, "demo/text_f4": 4, "demo/text_f8": 8}
SMALL = {
    "demo/pixels": [
        *TINY[:2],
        "autoencoder=identity",
        "denoiser.in_channels=3",
        "denoiser.out_channels=3",
        "denoiser.channel_mult=[1,1,1,2]",
        "denoiser.attention_levels=[]",
    ],
    "demo/text_f4": [*TINY, "denoiser.attention_levels=[]"],
}
"""Small overrides of two of them: pixels, and latents of factor 4."""


def build_on_meta(name: str) -> LatentDiffusion:
    with torch.device("meta"):
        return instantiate(compose("train", [f"experiment={name}"]).stage.model)


def test_the_unets_have_equal_parameters_and_cost_less_for_larger_factors() -> None:
    models = {name: build_on_meta(name) for name in SPACES}
    assert {name: m.first_stage.downsampling for name, m in models.items()} == SPACES
    sizes = [sum(p.numel() for p in m.denoiser.parameters()) for m in models.values()]
    assert sizes == [4_619_395, 4_496_962, 4_649_283, 4_601_416] and max(sizes) < 1.05 * min(sizes)
    costs = [downsampling_factors.count_gmac(m, (64, 64)) for m in models.values()]
    assert costs == pytest.approx([0.599, 0.225, 0.150, 0.103], abs=5e-4)


def test_the_experiments_differ_only_in_what_the_factor_requires() -> None:
    first, *others = (
        OmegaConf.to_container(compose("train", [f"experiment={name}"]), resolve=True)
        for name in ("demo/text", *SPACES)
    )
    required = ("autoencoder", "denoiser", "first_stage", "data.shards", "data.val_shards")
    for other in others:
        changed = {key.removeprefix("stage.model.") for key, _, _ in run_config.differences(first, other)}
        unexpected = {key for key in changed if not key.startswith(required)}
        assert unexpected <= {"conditioner.conditioners.coordinates.size", "stage.first_stage_weights"}


def save_run(runs: Path, name: str, step: int = 20, seconds: float = 9, size: int = 64) -> None:
    """Save the files of a run of equal_time, with an untrained model."""
    torch.manual_seed(0)
    cfg = compose("train", [*SMALL[name], "denoiser.model_channels=8"])
    model, config = instantiate(cfg.stage.model), OmegaConf.to_container(cfg.stage.model, resolve=True)
    header = {"step": str(step), "size": str(size), **model.describe_frozen_weights()}
    run = runs / name
    model_file.save(
        run / downsampling_factors.MODEL_FILE, model.state_dict(), config, "latent_diffusion", header
    )
    (run / "equal_time.json").write_text(json.dumps({"seconds": seconds, "steps": 20}))
    run_config.write({"data": {"global_batch_size": 4}, "trainer": {"max_steps": 20}, "stage": {}}, run)


def save_log(run: Path, speed: float, first: float = 1) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.csv").write_text(f"step,speed/images_per_second\n10,{first}\n20,{speed}\n")


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The overrides of every training run that would have started; each writes a log."""
    started: list[list[str]] = []

    def run_training(name: str, run: Path, overrides: list[str], settings: dict) -> None:
        started.append([name, *overrides])
        save_log(
            run,
            10 if name == "demo/pixels" else 30 if any("data.shards" in word for word in overrides) else 40,
        )

    monkeypatch.setattr(equal_time, "run_training", run_training)
    return started


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *typed: str) -> int:
    """Run the command and return its exit status."""
    words = [f"out={folder / 'out'}", f"runs={folder / 'runs'}", "experiments=[demo/pixels,demo/text_f4]"]
    words += [f"shards={tiny.shards(folder / 'images')}", "n=113", "reference=113", "steps=1", "shown=2"]
    monkeypatch.setattr(sys, "argv", ["downsampling_factors", *words, "batch_size=30", "device=cpu", *typed])
    try:
        downsampling_factors.main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_tables_and_plots_are_written_and_nothing_is_measured_twice(
    tmp_path, monkeypatch, capsys, trials
) -> None:
    for name in SMALL:
        save_run(tmp_path / "runs", name)
    save_log(tmp_path / "runs" / "demo/pixels", 8, first=8)
    assert run(monkeypatch, tmp_path, "given=['seed=3']") == 0, capsys.readouterr().err
    without_cache = [
        f"data.shards={tmp_path / 'images'}",
        "data.val_shards=null",
        "callbacks.latent_statistics=null",
    ]
    cached = ["seed=3", "callbacks.latent_statistics=null"]
    uncached = ["demo/text_f4", "seed=3", *without_cache]  # pixels have nothing to encode
    assert trials == [["demo/pixels", *cached], ["demo/text_f4", *cached], uncached]
    results = json.loads((tmp_path / "out" / "downsampling_factors.json").read_text())
    pixel, latent = results["demo/pixels"], results["demo/text_f4"]
    assert (pixel["factor"], latent["factor"]) == (1, 4) and pixel["gmac"] > 5 * latent["gmac"]
    speeds = ("training_speed", "uncached_training_speed", "encoding_speed")
    assert [pixel[key] for key in speeds] == [10, 10, None] and pixel["decoding_seconds"] >= 0
    assert [latent[key] for key in speeds[:2]] == [40, 30] and latent["images"] == 80
    assert (
        pixel["reconstructions"]["passed"] == 1
        and latent["encoding_speed"] > 0
        and latent["denoising_seconds"] > 0
    )
    text = (tmp_path / "out" / "downsampling_factors.md").read_text()
    assert "| 40.0 | 4.0 | 30.0 | 3.0 |" in text and "| 0.32 | 2.9 | 0.97 | 3.7 | 15.21 | 1.6 |" in text
    assert "planned for 9 s each, in 113 samples each" in text
    assert "| demo/pixels | 20 | 80 | 10 | " in text and "| demo/text_f4 | 20 | 80 |  | " in text
    with Image.open(tmp_path / "out" / "downsampling_factors_samples.png") as sheet:
        assert sheet.height == 2 * (64 + 4) + 4
    assert (tmp_path / "out" / "downsampling_factors.png").is_file()
    assert run(monkeypatch, tmp_path, "given=['seed=3']") == 0 and len(trials) == 3
    assert capsys.readouterr().out.count("measured before") == 2
    assert json.loads((tmp_path / "out" / "downsampling_factors.json").read_text()) == results
    path = tmp_path / "out" / "demo/pixels" / "result.json"
    saved = json.loads(path.read_text())
    del saved["space"]["training_seconds"]  # it is read from the log
    path.write_text(json.dumps(saved))
    assert run(monkeypatch, tmp_path, "given=['seed=3']") == 0 and len(trials) == 3
    assert json.loads((tmp_path / "out" / "downsampling_factors.json").read_text()) == results


def test_missing_and_unequal_runs_are_refused(tmp_path, monkeypatch, capsys, trials) -> None:
    save_run(tmp_path / "runs", "demo/pixels")
    assert run(monkeypatch, tmp_path) == 2
    error = capsys.readouterr().err
    assert "demo/text_f4 is not trained: " in error
    assert "python -m studies.equal_time demo/pixels demo/text_f4 " in error
    assert f"--out {tmp_path / 'runs'} --seconds 150" in error
    save_run(tmp_path / "runs", "demo/text_f4", step=10)
    assert run(monkeypatch, tmp_path) == 2
    assert "demo/text_f4 is at step 10 of 20: " in capsys.readouterr().err
    save_run(tmp_path / "runs", "demo/text_f4", seconds=8)
    assert run(monkeypatch, tmp_path) == 2 and not trials
    assert "in seconds (demo/pixels 9, demo/text_f4 8): give them another --out" in capsys.readouterr().err
    save_run(tmp_path / "runs", "demo/text_f4", size=128)
    assert run(monkeypatch, tmp_path) == 2 and not trials
    assert "(demo/pixels 64, demo/text_f4 128): train them with the same data.size" in capsys.readouterr().err


def test_the_papers_numbers_support_its_claim() -> None:
    (train, sample, fid), *latents = PAPER.values()
    assert min(min(a / train, b / sample) for a, b, _ in latents) > 2.7
    assert max(c for *_, c in latents) * 1.55 < fid and len(paper_table()) == 6
