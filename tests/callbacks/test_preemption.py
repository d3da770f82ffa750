"""Told to stop in one process; tests/test_ddp.py has several."""

import os
import signal

import pytest
import torch
from lightning import Callback

from ldm.callbacks.checkpoint import Checkpoint
from ldm.callbacks.preemption import REQUEUE, Preemption
from tests import tiny


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


def test_another_status_by_option(tmp_path):
    with pytest.raises(SystemExit) as left:
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, [Scheduler(1, "SIGTERM"), listening(status=0)])
    assert left.value.code == 0


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
