"""Files that callbacks write during training, on a disk that fills up and is freed again."""

import pytest
from lightning import Callback

from ldm.callbacks.checkpoint import Checkpoint
from ldm.callbacks.ema import EMA
from ldm.callbacks.export import Export
from ldm.callbacks.image_logger import ImageLogger
from ldm.callbacks.posthoc_ema import PostHocEMA
from ldm.errors import UserError
from ldm.interop import model_file
from tests.support import tiny
from tests.support.disks import fill, small_disk


class FillDisk(Callback):
    """Fills the disk from one step to another."""

    def __init__(self, disk, first: int, last: int) -> None:
        self.disk, self.first, self.last = disk, first, last

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step + 1 == self.first:
            fill(self.disk)
        if trainer.global_step == self.last:
            (self.disk / "fill").unlink()


def train(disk, folder, first: int, last: int, steps: int) -> None:
    """Train stage 1 with every callback that writes, every second step, and a log."""
    run = disk / "run"
    callbacks = [
        FillDisk(disk, first, last),
        EMA(0.9),
        ImageLogger(str(run / "images"), 2),
        PostHocEMA(str(run / "ema"), [0.1], 2),
        Export(str(run / "model.safetensors"), {}, "autoencoder", 2),
        Checkpoint(str(run / "checkpoints"), every_n_steps=2, keep=10),
    ]
    trainer = tiny.trainer(steps, callbacks, run / "metrics.csv")
    trainer.fit(tiny.first_stage(), tiny.data(folder / "shards", steps))


def files(folder, suffix: str) -> list[int]:
    return sorted(
        int(path.name.removeprefix("step").removesuffix(suffix)) for path in folder.glob(f"*{suffix}")
    )


def test_training_goes_on_and_writes_again_when_the_disk_is_free(tmp_path, caplog):
    with small_disk(tmp_path / "disk", 4096) as disk:
        train(disk, tmp_path, first=3, last=5, steps=8)
        run = disk / "run"
        assert files(run / "images", ".png") == files(run / "ema", ".safetensors") == [2, 6, 8]
        assert files(run / "checkpoints", ".ckpt") == [2, 6, 8]
        assert model_file.load(run / "model.safetensors", "autoencoder")[2]["step"] == "8"
        assert list(tiny.read_column(run / "metrics.csv", "train/loss")) == list(range(1, 9))
        assert not [path for path in run.rglob("*") if path.name.startswith(".")], "no temporary file"
    for name in ("images/step00000004.png", "ema/step00000004.safetensors", "model.safetensors"):
        assert f"{name} cannot be written (No space left on device): training continues" in caplog.text
    assert "step00000004.ckpt cannot be written (" in caplog.text
    assert len([record for record in caplog.records if record.name.startswith("ldm.callbacks.p")]) == 3


def test_the_last_model_file_ends_the_run_with_an_error_after_the_checkpoint_was_tried(tmp_path, caplog):
    with small_disk(tmp_path / "disk", 4096) as disk:
        with pytest.raises(UserError, match="step00000004.ckpt cannot be written .*: fix that .*resume=auto"):
            train(disk, tmp_path, first=3, last=9, steps=4)
        run = disk / "run"
        assert model_file.load(run / "model.safetensors", "autoencoder")[2]["step"] == "2"
        assert files(run / "checkpoints", ".ckpt") == files(run / "images", ".png") == [2]
    assert "model.safetensors cannot be written (No space left on device): it was the last" in caplog.text


@pytest.mark.parametrize(
    ("writer", "is_required"),
    [
        (lambda disk: Export(str(disk / "model.safetensors"), {}, "autoencoder", 10), True),
        (lambda disk: PostHocEMA(str(disk / "ema"), [0.1], 10), True),
        (lambda disk: ImageLogger(str(disk / "images"), 10), False),
    ],
    ids=["model file", "snapshot", "images"],
)
def test_what_a_run_must_have_written_at_its_end(tmp_path, writer, is_required, caplog):
    """The checkpoint, on another disk, is saved all the same."""
    with small_disk(tmp_path / "disk", 64) as disk:
        fill(disk)
        callbacks = [writer(disk), Checkpoint(str(tmp_path / "checkpoints"))]
        trainer = tiny.trainer(2, callbacks)
        if is_required:
            with pytest.raises(UserError, match="cannot be written .No space left .*: fix that"):
                trainer.fit(tiny.first_stage(), tiny.data(tmp_path / "shards", 2))
        else:
            trainer.fit(tiny.first_stage(), tiny.data(tmp_path / "shards", 2))
        assert "it was the last one of this run" in caplog.text
    assert files(tmp_path / "checkpoints", ".ckpt") == [2]
