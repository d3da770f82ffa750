"""Training of the demo's first stages: the codebook is used, and the discriminator does little harm."""

from pathlib import Path

import pytest

import train
from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.write_shards import write_shards
from studies import training_log
from tests.support import tiny
from tests.support.command_line import run_command


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 128 synthetic scenes in one shard."""
    folder = tmp_path_factory.mktemp("scenes")
    write_shards(DemoScenes("train", 128), folder)
    return folder


def train_first_stage(name: str, scenes: Path, run: Path, *overrides: str) -> Path:
    """Train and validate on the same images, too few to generalise from; return the run's folder."""
    data = (f"data.shards={scenes}", f"data.val_shards={scenes}", "callbacks.images=null")
    status, _, err = run_command(train.main, f"experiment={name}", f"run={run}", *data, *overrides)
    assert status == 0, err
    return run


@pytest.mark.slow
def test_most_of_the_codebook_is_used(scenes, tmp_path):
    overrides = ("trainer.max_steps=400", "trainer.val_check_interval=400", "stage.statistics_batches=1")
    run = train_first_stage("demo/ae_vq_f8", scenes, tmp_path / "vq", *overrides)
    assert tiny.read_column(run / "metrics.csv", "train/codes_used")[400] > 0.5
    assert tiny.read_column(run / "metrics.csv", "val/codes_used")[400] > 0.5


@pytest.mark.slow
def test_the_onset_of_the_discriminator_lowers_psnr_little_and_briefly(scenes, tmp_path):
    """PSNR does not stay more than 1 dB below its best before the onset for more than 200 steps."""
    onset = ("adversary.start=200", "adversary.warmup=40", "adversary.ramp_steps=80")
    overrides = ("trainer.max_steps=500", "trainer.val_check_interval=20", "data.val_batches=2")
    run = train_first_stage("demo/ae_gan", scenes, tmp_path / "gan", *overrides, *onset)
    weight = tiny.read_column(run / "metrics.csv", "train/lambda")
    assert min(weight) == 250 and weight[500] > 0, "the adversarial weight is logged from the onset"
    drop = training_log.summarize(run).psnr_drop
    assert drop is not None and drop.steps_below <= 200, drop
