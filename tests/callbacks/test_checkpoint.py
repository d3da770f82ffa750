"""Checkpoints: when, which stay, and whole or not at all."""

import pytest
import torch

from ldm.callbacks.checkpoint import AtomicCheckpointIO, Checkpoint, newest_checkpoint
from ldm.callbacks.ema import EMA
from tests import tiny


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_so_many_steps_and_at_the_end(tmp_path):
    saver = Checkpoint(str(tmp_path), every_n_steps=2, keep=3)
    tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 7, [saver])
    assert names(tmp_path) == ["step00000004.ckpt", "step00000006.ckpt", "step00000007.ckpt"]
    assert newest_checkpoint(tmp_path).name == "step00000007.ckpt"


def test_the_last_step_is_saved_once(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", lambda *args, **_: saved.append(args[2].name))
    tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, [Checkpoint(str(tmp_path), every_n_steps=2)])
    assert saved == ["step00000002.ckpt", "step00000004.ckpt"]


def test_holds_plain_types(tmp_path):
    stage = tiny.first_stage(adversary=tiny.adversary(start=0))
    tiny.fit(stage, [tiny.batch(1)] * 2, [EMA(0.9), Checkpoint(str(tmp_path))])
    found = torch.load(newest_checkpoint(tmp_path), weights_only=True)
    assert found["global_step"] == 2 and len(found["optimizer_states"]) == 2
    assert not tiny.changed(stage, found["state_dict"])
    assert found["callbacks"]["EMA"]["num_updates"] == 2


def test_a_failure_while_saving_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "step00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(2)}, path)
    older = path.read_bytes()

    def torn(value, file) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="no space left"):
        AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(2)}, path)
    assert path.read_bytes() == older and names(tmp_path) == [path.name]


def test_what_a_kill_leaves_is_not_a_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere") is None and newest_checkpoint(tmp_path) is None
    for name in ("step00000009.ckpt", "step100000000.ckpt", ".step100000001.ckpt.part", "stepx.ckpt"):
        (tmp_path / name).touch()
    assert newest_checkpoint(tmp_path).name == "step100000000.ckpt"


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0)])
def test_numbers_below_1_are_refused(numbers):
    with pytest.raises(ValueError, match=f"not {numbers[0]} and {numbers[1]}"):
        Checkpoint("anywhere", *numbers)
