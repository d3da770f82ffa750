"""Signals to stop in one process; tests/test_ddp.py has several."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback
from torch.utils.data import DataLoader

from ldm.callbacks.checkpoint import AtomicCheckpointIO, Checkpoint
from ldm.callbacks.ema import EMA
from ldm.callbacks.loggers.wandb import WandbLogger
from ldm.callbacks.preemption import INTERRUPTED, REPEATED_AFTER, REQUEUE, Preemption
from ldm.errors import UserError, WriteError
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
    before = {name: signal.getsignal(getattr(signal, name)) for name in ("SIGTERM", "SIGUSR1", "SIGINT")}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
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
        raise WriteError("no space left on device", "free some")

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


class PressCtrlC(Callback):
    """Sends SIGINT in a hook of one step, a number of times, some seconds apart."""

    def __init__(self, hook: str, step: int, times: int = 1, seconds: float = 0.0) -> None:
        self.step, self.times, self.seconds = step, times, seconds
        setattr(self, hook, self.press)

    def press(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            for number in range(self.times):
                time.sleep(self.seconds * (number > 0))
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("times", [1, 2], ids=["from the terminal", "and again by torchrun"])
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end"])
def test_ctrl_c_saves_the_step_and_is_not_requeued(hook, times, tmp_path, capfd):
    saved = 3 if hook == "on_train_batch_start" else 2
    callbacks = [PressCtrlC(hook, 2, times), listening_preemption(), Checkpoint(str(tmp_path), 100)]
    with pytest.raises(SystemExit) as exit:
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 6, callbacks)
    assert exit.value.code == INTERRUPTED == 130
    assert [path.name for path in tmp_path.glob("*.ckpt")] == [f"step0000000{saved}.ckpt"]
    out, err = capfd.readouterr()
    assert f"saved step {saved}, exit status 130" in out and err.count("press it again to end at once") == 1


def test_a_second_ctrl_c_ends_at_once_and_keeps_the_older_checkpoint(tmp_path, monkeypatch):
    """Also while the checkpoint is being written."""
    written = AtomicCheckpointIO.save_checkpoint

    def press_while_saving(self, checkpoint, path, storage_options=None):
        if path.name == "step00000004.ckpt":
            monkeypatch.setattr(torch, "save", lambda value, file: press(file))
        written(self, checkpoint, path)

    def press(file) -> None:
        file.write(b"half of it")
        time.sleep(REPEATED_AFTER + 0.1)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", press_while_saving)
    saver = Checkpoint(str(tmp_path), every_n_steps=2)
    callbacks = [PressCtrlC("on_train_batch_start", 3), listening_preemption(), saver]
    with pytest.raises(SystemExit) as exit:
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 6, callbacks)
    assert isinstance(exit.value.__context__, KeyboardInterrupt), "the trainer's exit, which commands know"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step00000002.ckpt",
        "step00000002.ckpt.sha256",
    ]


def test_ctrl_c_before_the_first_step_ends_at_once(tmp_path):
    callbacks = [PressCtrlC("on_train_start", 0), listening_preemption(), Checkpoint(str(tmp_path), 1)]
    with pytest.raises(SystemExit) as exit:
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 6, callbacks)
    assert isinstance(exit.value.__context__, KeyboardInterrupt) and list(tmp_path.iterdir()) == []


def test_ctrl_c_in_the_last_step_lets_the_run_finish(tmp_path):
    callbacks = [PressCtrlC("on_train_batch_start", 3), listening_preemption(), Checkpoint(str(tmp_path))]
    assert tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, callbacks).global_step == 4
    assert (tmp_path / "step00000004.ckpt").is_file()


def test_ctrl_c_counts_above_a_schedulers_signals(tmp_path):
    callbacks = [Scheduler(1, "SIGUSR1"), PressCtrlC("on_train_batch_start", 1), Scheduler(1, "SIGTERM")]
    with pytest.raises(SystemExit) as exit:
        tiny.fit(
            tiny.first_stage(),
            [tiny.batch(1)] * 4,
            [*callbacks, listening_preemption(), Checkpoint(str(tmp_path))],
        )
    assert exit.value.code == INTERRUPTED


def test_ctrl_c_without_checkpoints_says_that_nothing_is_saved(capsys):
    with pytest.raises(SystemExit) as exit:
        tiny.fit(
            tiny.first_stage(),
            [tiny.batch(1)] * 4,
            [PressCtrlC("on_train_batch_start", 1), listening_preemption()],
        )
    assert exit.value.code == INTERRUPTED
    assert "step 2 could not be saved (callbacks.checkpoint=null" in capsys.readouterr().out


def test_a_run_in_the_background_keeps_ignoring_ctrl_c(tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    callbacks = [PressCtrlC("on_train_batch_start", 1), listening_preemption(), Checkpoint(str(tmp_path))]
    assert tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 3, callbacks).global_step == 3


@pytest.mark.parametrize(("hook", "step"), [("on_train_batch_start", 1), ("on_train_start", 0)])
def test_wandb_shows_a_run_that_ctrl_c_ended_as_killed(hook, step, tmp_path):
    log, statuses = WandbLogger(str(tmp_path), "ldm", "a run", offline=True), []
    log.run = SimpleNamespace(log=print, finish=lambda exit_code: statuses.append(exit_code))
    callbacks = [PressCtrlC(hook, step), listening_preemption(), Checkpoint(str(tmp_path / "c"))]
    trainer = tiny.trainer(4, callbacks)
    trainer.loggers, trainer.limit_val_batches = [log], 0
    with pytest.raises(SystemExit):
        trainer.fit(tiny.first_stage(), DataLoader([tiny.batch(1)] * 4, batch_size=None))
    assert statuses == [255]
