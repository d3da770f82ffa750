"""Speed, data wait and memory in the log rows; latent statistics; progress lines in a job's log."""

import re
import time

import pytest
import torch
from lightning import Callback
from torch.utils.data import DataLoader

from ldm.callbacks.latent_statistics import LatentStatistics
from ldm.callbacks.progress import ProgressBar
from ldm.callbacks.throughput import Throughput, peak_memory
from ldm.data import datamodule
from ldm.data.fields.image import ImageField
from tests.support import tiny


class Clock:
    """A clock that advances only when a test advances it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Delay(Callback):
    """Each step takes 0.3 s and each validation batch 5 s."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_) -> None:
        self.clock.now += 0.3

    def on_validation_batch_start(self, *_) -> None:
        self.clock.now += 5.0


class SlowImageField(ImageField):
    """Loading an image takes 0.05 s."""

    def __call__(self, *args):
        clock.now += 0.05
        return super().__call__(*args)


clock = Clock()


def test_images_per_second_and_data_wait_exclude_validation(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(datamodule, "ImageField", SlowImageField)
    stage, recorded = tiny.first_stage(log_every=2), []
    stage.log_row = lambda values: recorded.append(dict(values))
    trainer = tiny.trainer(6, [Throughput(), Delay(clock)], validate_every=2)
    trainer.fit(stage, tiny.data(tmp_path, 6))
    rows = [row for row in recorded if "train/loss" in row]
    assert len(rows) == 3
    for row in rows:
        assert row["speed/images_per_second"] == pytest.approx(4 / 0.5), "4 images in 0.3 s and 4 x 0.05 s"
        assert row["speed/data_wait"] == pytest.approx(0.2 / 0.5)
        assert row["memory/peak_gib"] == pytest.approx(peak_memory() / 2**30, rel=0.5)
    assert 2**26 < peak_memory() < 2**36


def log_rows(stage, batches, callbacks) -> list[dict]:
    """Train and return the log rows."""
    recorded = []
    stage.log_row = lambda values: recorded.append({k: float(v) for k, v in values.items()})
    trainer = tiny.trainer(len(batches), callbacks)
    trainer.limit_val_batches = 0
    trainer.fit(stage, DataLoader(batches, batch_size=None))
    return recorded


def test_statistics_of_the_normalised_latents():
    stage = tiny.second_stage(micro_batch_size=2)
    stage.model.first_stage.set_latent_statistics(torch.full((4,), 0.5), torch.full((4,), 2.0))
    (first, _) = log_rows(stage, [tiny.batch(4, first=4 * i) for i in range(2)], [LatentStatistics()])
    part = {k: v[:2] for k, v in tiny.batch(4).items()}
    z_0 = stage.latents(part)
    assert first["train/latent_mean"] == pytest.approx(z_0.mean().item(), rel=1e-4)
    assert first["train/latent_std"] == pytest.approx(z_0.std().item(), rel=1e-4)


def test_progress_lines_without_a_terminal(capsys):
    trainer = tiny.trainer(4, [Throughput()])
    trainer.callbacks.append(ProgressBar(seconds=0))  # the trainer of the tests is silent
    trainer.limit_val_batches = 0
    trainer.fit(tiny.first_stage(), DataLoader([tiny.batch(2)] * 4, batch_size=None))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split("  ")[0] for line in lines] == [f"step {i} of 4" for i in (1, 2, 3, 4)]
    assert re.search(r"0:00:00 left  loss \d\.\d+  ", lines[-1])
    assert "img/s" in lines[-1] and "wait" in lines[-1] and lines[-1].endswith("%")
