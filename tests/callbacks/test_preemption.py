"""Signals to stop in one process; tests/test_ddp.py has several."""

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
    """Sends a signal during a step."""

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


def listening_preemption(**options: int) -> Preemption:
    preemption = Preemption(**options)
    preemption.listen()
    return preemption


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_saves_the_step_and_exits_for_requeueing(name, tmp_path, capsys):
    callbacks = [Scheduler(2, name), listening_preemption(), Checkpoint(str(tmp_path), every_n_steps=100)]
    with pytest.raises(SystemExit) as exit:
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 6, callbacks)
    assert exit.value.code == REQUEUE == 75
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step00000003.ckpt"]
    assert torch.load(tmp_path / "step00000003.ckpt", weights_only=True)["global_step"] == 3
    assert "saved step 3, exit status 75" in capsys.readouterr().out
    os.kill(os.getpid(), signal.SIGTERM)  # ignored while it exits


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 0), ("SIGUSR1", REQUEUE)])
def test_the_status_option_does_not_apply_to_the_time_limit(name, status, tmp_path):
    callbacks = [Scheduler(1, name), listening_preemption(status=0), Checkpoint(str(tmp_path))]
    with pytest.raises(SystemExit) as exit:
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, callbacks)
    assert exit.value.code == status


def test_without_checkpoints_the_run_fails_and_is_not_requeued(capsys):
    with pytest.raises(UserError, match="at step 2, which could not be saved .callbacks.checkpoint=null"):
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, [Scheduler(1, "SIGUSR1"), listening_preemption()])
    assert "saved" not in capsys.readouterr().out


def test_after_a_failed_save_the_run_is_not_requeued(tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise CheckpointWriteError("no space left on device")

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", fails)
    callbacks = [Scheduler(1, "SIGUSR1"), listening_preemption(), Checkpoint(str(tmp_path))]
    with pytest.raises(
        UserError, match="at step 2, which could not be saved .no space left on device.: fix that"
    ):
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, callbacks)
    assert "saved" not in capsys.readouterr().out


class SignalInValidation(Callback):
    """Sends a signal in the first batch of the first validation."""

    def __init__(self) -> None:
        self.batches = []

    def on_validation_batch_start(self, trainer, *_) -> None:
        self.batches.append(trainer.global_step)
        if len(self.batches) == 1:
            os.kill(os.getpid(), signal.SIGUSR1)


def test_validation_ends_at_the_time_limit(tmp_path):
    """After the current batch and without a log row, and the resumed run has the same bits."""

    def train(name, callbacks, checkpoint=None):
        torch.manual_seed(0)
        folder = tmp_path / name
        callbacks = [
            EMA(0.9),
            *callbacks,
            listening_preemption(),
            Checkpoint(str(folder / "c"), every_n_steps=100),
        ]
        trainer = tiny.trainer(6, callbacks, folder / "metrics.csv", validate_every=2)
        trainer.fit(
            tiny.first_stage(), tiny.data(tmp_path / "shards", 6), ckpt_path=checkpoint, weights_only=True
        )

    sender = SignalInValidation()
    with pytest.raises(SystemExit) as exit:
        train("cut", [sender])
    assert exit.value.code == REQUEUE and sender.batches == [2], "one of two batches"
    train("cut", [], tmp_path / "cut" / "c" / "step00000003.ckpt")
    train("straight", [])
    rows = [tiny.read_column(tmp_path / name / "metrics.csv", "val/nll") for name in ("cut", "straight")]
    assert list(rows[0]) == [4, 6] and rows[1] == {2: rows[1][2], **rows[0]}
    ours, theirs = (
        torch.load(tmp_path / name / "c" / "step00000006.ckpt", weights_only=True)["state_dict"]
        for name in ("cut", "straight")
    )
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_wandb_marks_the_run_as_preempted(tmp_path):
    log, marked = WandbLogger(str(tmp_path), "ldm", "a run", offline=True), []
    log.run = SimpleNamespace(
        mark_preempting=lambda: marked.append(True), log=print, finish=lambda exit_code: None
    )
    trainer = tiny.trainer(
        4, [Scheduler(1, "SIGUSR1"), listening_preemption(), Checkpoint(str(tmp_path / "c"))]
    )
    trainer.loggers, trainer.limit_val_batches = [log], 0
    with pytest.raises(SystemExit):
        trainer.fit(tiny.first_stage(), DataLoader([tiny.batch(1)] * 4, batch_size=None))
    assert marked == [True]


def test_a_signal_in_the_last_step_is_ignored(tmp_path):
    callbacks = [Scheduler(3, "SIGUSR1"), listening_preemption(), Checkpoint(str(tmp_path))]
    trainer = tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, callbacks)
    assert trainer.global_step == 4 and (tmp_path / "step00000004.ckpt").is_file()


def test_a_signal_before_the_first_step_is_kept(tmp_path):
    preemption = listening_preemption()
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(SystemExit):
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, [preemption, Checkpoint(str(tmp_path))])
    assert (tmp_path / "step00000001.ckpt").is_file()


def test_lightning_handles_no_signal_and_a_finished_run_restores_the_handlers(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    handlers = []

    class RecordHandler(Callback):
        def on_train_batch_start(self, *_) -> None:
            handlers.append(signal.getsignal(signal.SIGTERM))

    preemption = listening_preemption()
    tiny.fit(tiny.first_stage(), [tiny.batch(1)], [RecordHandler(), preemption])
    assert handlers == [preemption._handle_signal] and signal.getsignal(signal.SIGTERM) == before
