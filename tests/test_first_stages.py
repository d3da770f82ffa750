"""The demo's first stages while they learn: what codebook and discriminator must not do."""

import sys
from pathlib import Path

import pytest

import train
from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.write_shards import write_shards
from studies import training_log
from tests.support import tiny


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some drawn scenes in a shard."""
    folder = tmp_path_factory.mktemp("scenes")
    write_shards(DemoScenes("train", 128), folder)
    return folder


def trained(name: str, scenes: Path, run: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Path:
    """The run's folder; measured on the images it learns, which are too few to learn others from."""
    given = (f"data.shards={scenes}", f"data.val_shards={scenes}", "callbacks.images=null")
    monkeypatch.setattr(sys, "argv", ["train.py", f"experiment={name}", f"run={run}", *given, *words])
    train.main()
    return run


@pytest.mark.slow
def test_most_of_a_codebook_is_used(scenes, tmp_path, monkeypatch):
    words = ("trainer.max_steps=400", "trainer.val_check_interval=400", "stage.statistics_batches=1")
    run = trained("demo/ae_vq_f8", scenes, tmp_path / "vq", monkeypatch, *words)
    assert tiny.read_column(run / "metrics.csv", "train/codes_used")[400] > 0.5
    assert tiny.read_column(run / "metrics.csv", "val/codes_used")[400] > 0.5


@pytest.mark.slow
def test_a_discriminators_onset_costs_little_and_not_for_long(scenes, tmp_path, monkeypatch):
    """PSNR does not stay more than 1 dB below its best before the onset for more than 200 steps."""
    times = ("adversary.start=200", "adversary.warmup=40", "adversary.ramp_steps=80")
    words = ("trainer.max_steps=500", "trainer.val_check_interval=20", "data.val_batches=2")
    run = trained("demo/ae_gan", scenes, tmp_path / "gan", monkeypatch, *words, *times)
    heard = tiny.read_column(run / "metrics.csv", "train/lambda")
    assert min(heard) == 250 and heard[500] > 0, "from the onset on"
    onset = training_log.summarize(run).psnr_drop
    assert onset is not None and onset.steps_below <= 200, onset
