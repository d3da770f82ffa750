"""Checkpoints: when, which stay, and whole or not at all."""

import os
import resource
import subprocess
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy

from ldm.callbacks import checkpoint
from ldm.callbacks.checkpoint import (
    AtomicCheckpointIO,
    Checkpoint,
    CheckpointWriteError,
    is_undamaged,
    newest_checkpoint,
)
from ldm.callbacks.ema import EMA
from ldm.errors import UserError
from tests.support import tiny


def names(folder):
    """The checkpoints; each has its side-car."""
    found = sorted(path.name for path in folder.iterdir())
    checkpoints = [name for name in found if not name.endswith(".sha256")]
    assert found == sorted([*checkpoints, *(f"{name}.sha256" for name in checkpoints)])
    return checkpoints


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


@pytest.mark.parametrize("numbers", [(0, 2, 0), (1, 0, 0), (1, 1, 0), (1, 2, -1)])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(ValueError, match="not {}, {} and {}".format(*numbers)):
        Checkpoint("anywhere", *numbers)


def test_ranks_that_found_different_checkpoints_do_not_start(tmp_path, monkeypatch):
    def of_another(self, obj, src=0):
        return obj + 3 if isinstance(obj, int) else obj

    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", of_another)
    with pytest.raises(UserError, match=r"this one from 0, rank 0 from 3: the file system"):
        tiny.fit(tiny.first_stage(), [tiny.batch(1)], [Checkpoint(str(tmp_path))])


def test_a_last_step_that_divides_is_saved_after_all_else(tmp_path):
    """Else a kill between would leave a finished run without its model file."""
    seen = []

    class Looks(Callback):
        def on_train_end(self, *_) -> None:
            seen.extend(names(tmp_path))

    tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 4, [Looks(), Checkpoint(str(tmp_path), every_n_steps=2)])
    assert seen == ["step00000002.ckpt"] and names(tmp_path) == ["step00000002.ckpt", "step00000004.ckpt"]


def test_milestones_stay(tmp_path):
    tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 7, [Checkpoint(str(tmp_path), 1, 2, milestone_every=3)])
    assert names(tmp_path) == [f"step0000000{step}.ckpt" for step in (3, 5, 6, 7)]


def test_says_which_run_it_is_of(tmp_path):
    saver = Checkpoint(str(tmp_path))
    saver.about = {"config": "seed: 3"}
    tiny.fit(tiny.first_stage(), [tiny.batch(1)], [saver])
    said = torch.load(newest_checkpoint(tmp_path), weights_only=True)["ldm"]
    assert said["config"] == "seed: 3" and said["version"] and said["loggers"] == {}


def test_the_newest_that_is_undamaged_is_taken(tmp_path, caplog):
    saver = AtomicCheckpointIO()
    for step in (1, 2, 3):
        saver.save_checkpoint(
            {"weight": torch.full((1000,), float(step))}, tmp_path / f"step0000000{step}.ckpt"
        )
    flipped, cut = (tmp_path / f"step0000000{step}.ckpt" for step in (3, 2))
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-100])
    assert newest_checkpoint(tmp_path).name == "step00000001.ckpt"
    assert caplog.text.count("damaged") == 2
    (tmp_path / "step00000001.ckpt").write_bytes(b"")
    assert newest_checkpoint(tmp_path) is None, "a fresh start"


def test_the_side_car_is_what_sha256sum_reads(tmp_path):
    path = tmp_path / "step00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(2)}, path)
    subprocess.run(["sha256sum", "--check", "--status", f"{path.name}.sha256"], cwd=tmp_path, check=True)


def test_a_file_written_again_is_never_beside_another_files_hash(tmp_path, monkeypatch):
    path = tmp_path / "step00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(2)}, path)
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *args: (seen.append(is_undamaged(path)), replace(*args)))
    monkeypatch.setattr(checkpoint, "_sync_folder", lambda _: seen.append(is_undamaged(path)))
    AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(2)}, path)
    assert seen == [True, True] and is_undamaged(path)


@pytest.fixture
def full_disk():
    """Files end at 4 KB, as on a disk that is full; Python ignores the signal that comes with it."""

    def fill(bytes_left):
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, resource.RLIM_INFINITY))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_full_disk_keeps_the_older_one_and_says_so(tmp_path, full_disk, caplog):
    class Filling(Callback):
        def on_train_batch_end(self, trainer, *_):
            full_disk(4096 if trainer.global_step == 4 else resource.RLIM_INFINITY)

    saver = Checkpoint(str(tmp_path), every_n_steps=2, keep=3)
    tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 6, [Filling(), saver])
    assert names(tmp_path) == ["step00000002.ckpt", "step00000006.ckpt"]
    assert "step00000004.ckpt could not be written" in caplog.text and "the older one stays" in caplog.text


def test_three_failures_in_a_row_end_the_run(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise CheckpointWriteError("no space left on device")

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", fails)
    with pytest.raises(UserError, match="no space left on device, 3 times in a row: make room .*resume=auto"):
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 9, [Checkpoint(str(tmp_path), every_n_steps=2)])
    with pytest.raises(UserError, match="no space left on device: make room"):
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 3, [Checkpoint(str(tmp_path), every_n_steps=2)])


def test_too_little_room_is_known_beforehand(tmp_path, monkeypatch):
    saver = AtomicCheckpointIO()
    saver.save_checkpoint({"weight": torch.ones(9000)}, tmp_path / "step00000001.ckpt")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=30_000))
    with pytest.raises(CheckpointWriteError, match="30,000 bytes are free and the last one had 3"):
        saver.save_checkpoint({"weight": torch.ones(9000)}, tmp_path / "step00000002.ckpt")
    assert names(tmp_path) == ["step00000001.ckpt"]
