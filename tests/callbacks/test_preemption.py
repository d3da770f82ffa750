"""Told to stop in one process; tests/test_ddp.py has several."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback
from torch.utils.data import DataLoader

from ldm.callbacks.checkpoint import AtomicCheckpointIO, Checkpoint, CheckpointWriteError
from ldm.callbacks.ema import EMA
from ldm.callbacks.loggers.wandb import WandbLogger
from ldm.callbacks.preemption import REQUEUE, Preemption
from ldm.errors import UserError
from tests.support import tiny


class Scheduler(Callback):
    """Sends a signal in the middle of a step."""

    def __init__(self, step: int, name: str) -> None:
        self.step, self.name = step, name

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), getattr(signal, self.name))


@pytest.fixture(autouse=True)
def _signals():
    before = {name: signal.getsignal(getattr(signal, name)) for name in ("SIGTERM", "SIGUSR1")}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


def listening(**more: int) -> Preemption:
    made = Preemption(**more)
    made.listen()
    return made


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_saves_the_step_and_exits_for_requeueing(name, tmp_path, capsys):
    callbacks = [Scheduler(2, name), listening(), Checkpoint(str(tmp_path), every_n_steps=100)]
    with pytest.raises(SystemExit) as left:
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 6, callbacks)
    assert left.value.code == REQUEUE == 75
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step00000003.ckpt"]
    assert torch.load(tmp_path / "step00000003.ckpt", weights_only=True)["global_step"] == 3
    assert "saved step 3, exit status 75" in capsys.readouterr().out
    os.kill(os.getpid(), signal.SIGTERM)  # while it goes, it stays deaf


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 0), ("SIGUSR1", REQUEUE)])
def test_another_status_by_option_but_not_at_a_time_limit(name, status, tmp_path):
    callbacks = [Scheduler(1, name), listening(status=0), Checkpoint(str(tmp_path))]
    with pytest.raises(SystemExit) as left:
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, callbacks)
    assert left.value.code == status


def test_without_checkpoints_nothing_is_said_to_be_saved(capsys):
    with pytest.raises(UserError, match="at step 2, which is not saved .callbacks.checkpoint=null keeps no"):
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, [Scheduler(1, "SIGUSR1"), listening()])
    assert "saved" not in capsys.readouterr().out


def test_a_save_that_fails_is_no_reason_to_queue_again(tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise CheckpointWriteError("no space left on device")

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", fails)
    callbacks = [Scheduler(1, "SIGUSR1"), listening(), Checkpoint(str(tmp_path))]
    with pytest.raises(UserError, match="at step 2, which is not saved .no space left on device.: mend that"):
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, callbacks)
    assert "saved" not in capsys.readouterr().out


class InValidation(Callback):
    """The scheduler's signal comes with the first batch of the first validation."""

    def __init__(self) -> None:
        self.batches = []

    def on_validation_batch_start(self, trainer, *_) -> None:
        self.batches.append(trainer.global_step)
        if len(self.batches) == 1:
            os.kill(os.getpid(), signal.SIGUSR1)


def test_validation_does_not_outlast_the_time_limit(tmp_path):
    """It ends after the batch, leaves no row, and the run goes on in the same bits."""

    def train(name, callbacks, checkpoint=None):
        torch.manual_seed(0)
        folder = tmp_path / name
        callbacks = [EMA(0.9), *callbacks, listening(), Checkpoint(str(folder / "c"), every_n_steps=100)]
        trainer = tiny.trainer(6, callbacks, folder / "metrics.csv", validate_every=2)
        trainer.fit(
            tiny.first_stage(), tiny.data(tmp_path / "shards", 6), ckpt_path=checkpoint, weights_only=True
        )

    told = InValidation()
    with pytest.raises(SystemExit) as left:
        train("cut", [told])
    assert left.value.code == REQUEUE and told.batches == [2], "of two batches one was seen"
    train("cut", [], tmp_path / "cut" / "c" / "step00000003.ckpt")
    train("straight", [])
    rows = [tiny.column(tmp_path / name / "metrics.csv", "val/nll") for name in ("cut", "straight")]
    assert list(rows[0]) == [4, 6] and rows[1] == {2: rows[1][2], **rows[0]}
    ours, theirs = (
        torch.load(tmp_path / name / "c" / "step00000006.ckpt", weights_only=True)["state_dict"]
        for name in ("cut", "straight")
    )
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_wandb_is_told_that_the_run_will_go_on(tmp_path):
    log, marked = WandbLogger(str(tmp_path), "ldm", "a run", offline=True), []
    log.run = SimpleNamespace(
        mark_preempting=lambda: marked.append(True), log=print, on_export=lambda exit_code: None
    )
    trainer = tiny.trainer(4, [Scheduler(1, "SIGUSR1"), listening(), Checkpoint(str(tmp_path / "c"))])
    trainer.loggers, trainer.limit_val_batches = [log], 0
    with pytest.raises(SystemExit):
        trainer.fit(tiny.first_stage(), DataLoader([tiny.batch(1)] * 4, batch_size=None))
    assert marked == [True]


def test_a_signal_in_the_last_step_does_not_matter(tmp_path):
    callbacks = [Scheduler(3, "SIGUSR1"), listening(), Checkpoint(str(tmp_path))]
    trainer = tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, callbacks)
    assert trainer.global_step == 4 and (tmp_path / "step00000004.ckpt").is_file()


def test_a_signal_before_the_first_step_is_not_lost(tmp_path):
    preemption = listening()
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(SystemExit):
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, [preemption, Checkpoint(str(tmp_path))])
    assert (tmp_path / "step00000001.ckpt").is_file()


def test_lightning_handles_no_signal_and_a_finished_run_gives_them_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    class Looks(Callback):
        def on_train_batch_start(self, *_) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

    preemption = listening()
    tiny.fit(tiny.first_stage(), [tiny.batch(1)], [Looks(), preemption])
    assert seen == [preemption._note] and signal.getsignal(signal.SIGTERM) == before
