"""Spaces side by side: equal U-Nets in the experiments, and the command on models that learned nothing."""

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
from tests.cli.sampling.test_files import TINY
from tests.support import tiny

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
"""What stands in for two of them: pixels, and places of 4x4 pixels."""


def on_meta(name: str) -> LatentDiffusion:
    with torch.device("meta"):
        return instantiate(compose("train", [f"experiment={name}"]).stage.model)


def test_the_unets_are_equally_large_and_cost_less_the_coarser_the_space() -> None:
    models = {name: on_meta(name) for name in SPACES}
    assert {name: m.first_stage.downsampling for name, m in models.items()} == SPACES
    sizes = [sum(p.numel() for p in m.denoiser.parameters()) for m in models.values()]
    assert sizes == [4_619_395, 4_496_962, 4_649_283, 4_601_416] and max(sizes) < 1.05 * min(sizes)
    costs = [downsampling_factors.gmac(m, (64, 64)) for m in models.values()]
    assert costs == pytest.approx([0.599, 0.225, 0.150, 0.103], abs=5e-4)


def test_the_experiments_differ_only_in_what_the_space_demands() -> None:
    first, *others = (
        OmegaConf.to_container(compose("train", [f"experiment={name}"]), resolve=True)
        for name in ("demo/text", *SPACES)
    )
    demanded = ("autoencoder", "denoiser", "first_stage", "data.shards", "data.val_shards")
    for other in others:
        changed = {key.removeprefix("stage.model.") for key, _, _ in run_config.differences(first, other)}
        odd = {key for key in changed if not key.startswith(demanded)}
        assert odd <= {"conditioner.conditioners.coordinates.size", "stage.first_stage_weights"}


def leave_run(runs: Path, name: str, step: int = 20, seconds: float = 9, size: int = 64) -> None:
    """What equal_time leaves, of a model as it is built."""
    torch.manual_seed(0)
    cfg = compose("train", [*SMALL[name], "denoiser.model_channels=8"])
    model, config = instantiate(cfg.stage.model), OmegaConf.to_container(cfg.stage.model, resolve=True)
    header = {"step": str(step), "size": str(size), **model.identity()}
    run = runs / name
    model_file.save(run / downsampling_factors.FILE, model.state_dict(), config, "latent_diffusion", header)
    (run / "equal_time.json").write_text(json.dumps({"seconds": seconds, "steps": 20}))
    run_config.write({"data": {"global_batch_size": 4}, "trainer": {"max_steps": 20}, "stage": {}}, run)


def leave_log(run: Path, speed: float, first: float = 1) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.csv").write_text(f"step,speed/images_per_second\n10,{first}\n20,{speed}\n")


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The overrides of every training that would have begun; each leaves a log."""
    started: list[list[str]] = []

    def start(name: str, run: Path, given: list[str], settings: dict) -> None:
        started.append([name, *given])
        leave_log(
            run, 10 if name == "demo/pixels" else 30 if any("data.shards" in word for word in given) else 40
        )

    monkeypatch.setattr(equal_time, "start", start)
    return started


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *typed: str) -> int:
    """The command's exit status."""
    words = [f"out={folder / 'out'}", f"runs={folder / 'runs'}", "experiments=[demo/pixels,demo/text_f4]"]
    words += [f"shards={tiny.shards(folder / 'images')}", "n=113", "reference=113", "steps=1", "shown=2"]
    monkeypatch.setattr(sys, "argv", ["compare_factors", *words, "batch_size=30", "device=cpu", *typed])
    try:
        downsampling_factors.main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_tables_plots_and_nothing_measured_twice(tmp_path, monkeypatch, capsys, trials) -> None:
    for name in SMALL:
        leave_run(tmp_path / "runs", name)
    leave_log(tmp_path / "runs" / "demo/pixels", 8, first=8)
    assert run(monkeypatch, tmp_path, "given=['seed=3']") == 0, capsys.readouterr().err
    pixels = [
        f"data.shards={tmp_path / 'images'}",
        "data.val_shards=null",
        "callbacks.latent_statistics=null",
    ]
    quiet = ["seed=3", "callbacks.latent_statistics=null"]
    uncached = ["demo/text_f4", "seed=3", *pixels]  # pixels have nothing to encode
    assert trials == [["demo/pixels", *quiet], ["demo/text_f4", *quiet], uncached]
    found = json.loads((tmp_path / "out" / "factors.json").read_text())
    pixel, latent = found["demo/pixels"], found["demo/text_f4"]
    assert (pixel["factor"], latent["factor"]) == (1, 4) and pixel["gmac"] > 5 * latent["gmac"]
    assert (pixel["cached"], pixel["uncached"], pixel["encoding"], pixel["decoding"] >= 0) == (
        10,
        10,
        None,
        1,
    )
    assert (latent["cached"], latent["uncached"], latent["images"]) == (40, 30, 80)
    assert pixel["reconstructions"]["passed"] == 1 and latent["encoding"] > 0 and latent["denoising"] > 0
    text = (tmp_path / "out" / "factors.md").read_text()
    assert "| 40.0 | 4.0 | 30.0 | 3.0 |" in text and "| 0.32 | 2.9 | 0.97 | 3.7 | 15.21 | 1.6 |" in text
    assert "What training brought, planned for 9 s each, in 113 samples of each" in text
    assert "| demo/pixels | 20 | 80 | 10 | " in text and "| demo/text_f4 | 20 | 80 |  | " in text
    with Image.open(tmp_path / "out" / "factors_samples.png") as sheet:
        assert sheet.height == 2 * (64 + 4) + 4
    assert (tmp_path / "out" / "factors.png").is_file()
    assert run(monkeypatch, tmp_path, "given=['seed=3']") == 0 and len(trials) == 3
    assert capsys.readouterr().out.count("measured before") == 2
    assert json.loads((tmp_path / "out" / "factors.json").read_text()) == found
    kept = tmp_path / "out" / "demo/pixels" / "found.json"
    known = json.loads(kept.read_text())
    del known["space"]["took"]  # as files of before have it
    kept.write_text(json.dumps(known))
    assert run(monkeypatch, tmp_path, "given=['seed=3']") == 0 and len(trials) == 3
    assert json.loads((tmp_path / "out" / "factors.json").read_text()) == found


def test_what_is_missing_is_said(tmp_path, monkeypatch, capsys, trials) -> None:
    leave_run(tmp_path / "runs", "demo/pixels")
    assert run(monkeypatch, tmp_path) == 2
    said = capsys.readouterr().err
    assert "demo/text_f4 is not trained: python -m studies.equal_time demo/pixels demo/text_f4 " in said
    assert f"--out {tmp_path / 'runs'} --seconds 150" in said
    leave_run(tmp_path / "runs", "demo/text_f4", step=10)
    assert run(monkeypatch, tmp_path) == 2
    assert "demo/text_f4 stands at step 10 of 20: python -m" in capsys.readouterr().err
    leave_run(tmp_path / "runs", "demo/text_f4", seconds=8)
    assert run(monkeypatch, tmp_path) == 2 and not trials
    assert "equally long, in seconds: demo/pixels 9, demo/text_f4 8; give them" in capsys.readouterr().err
    leave_run(tmp_path / "runs", "demo/text_f4", size=128)
    assert run(monkeypatch, tmp_path) == 2 and not trials
    assert "several sizes: demo/pixels 64, demo/text_f4 128; train them" in capsys.readouterr().err


def test_the_papers_numbers_bear_its_claim() -> None:
    (train, sample, fid), *latents = PAPER.values()
    assert min(min(a / train, b / sample) for a, b, _ in latents) > 2.7
    assert max(c for *_, c in latents) * 1.55 < fid and len(paper_table()) == 6
