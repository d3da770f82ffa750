"""Checkpoints: when they are saved, which are kept, and that they are complete or not there at all."""

import errno
import os
import resource
import subprocess
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy

from ldm import atomic
from ldm.callbacks.checkpoint import (
    AtomicCheckpointIO,
    Checkpoint,
    is_intact,
    newest_checkpoint,
)
from ldm.callbacks.ema import EMA
from ldm.errors import UserError, WriteError
from tests.support import tiny
from tests.support.disks import small_disk


def names(folder):
    """The folder's checkpoints; each has its hash file, and there is nothing else."""
    files = sorted(path.name for path in folder.iterdir())
    checkpoints = [name for name in files if not name.endswith(".sha256")]
    assert files == sorted([*checkpoints, *(f"{name}.sha256" for name in checkpoints)])
    return checkpoints


def test_saved_every_n_steps_and_at_the_end(tmp_path):
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
    saved = torch.load(newest_checkpoint(tmp_path), weights_only=True)
    assert saved["global_step"] == 2 and len(saved["optimizer_states"]) == 2
    assert not tiny.changed_names(stage, saved["state_dict"])
    assert saved["callbacks"]["EMA"]["num_updates"] == 2


def test_a_failure_while_saving_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "step00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(2)}, path)
    older = path.read_bytes()

    def save_half(value, file) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="no space left"):
        AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(2)}, path)
    assert path.read_bytes() == older and names(tmp_path) == [path.name]


def test_a_full_disk_is_named_although_torch_hides_it(tmp_path):
    with small_disk(tmp_path / "disk", 512) as disk:
        path = disk / "step00000001.ckpt"
        AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(2)}, path)
        older = path.read_bytes()
        with pytest.raises(WriteError, match="step00000001.ckpt cannot be written .No space left on device"):
            AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(200_000)}, path)
        assert path.read_bytes() == older and names(disk) == [path.name] and is_intact(path)


def test_a_partial_file_is_not_a_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere") is None and newest_checkpoint(tmp_path) is None
    for name in ("step00000009.ckpt", "step100000000.ckpt", ".step100000001.ckpt.part", "stepx.ckpt"):
        (tmp_path / name).touch()
    assert newest_checkpoint(tmp_path).name == "step100000000.ckpt"


@pytest.mark.parametrize("numbers", [(0, 2, 0), (1, 0, 0), (1, 1, 0), (1, 2, -1)])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(
        ValueError, match="not every_n_steps={}, keep={} and milestone_every={}".format(*numbers)
    ):
        Checkpoint("anywhere", *numbers)


def test_ranks_that_found_different_checkpoints_do_not_start(tmp_path, monkeypatch):
    def broadcast_other_step(self, obj, src=0):
        return obj + 3 if isinstance(obj, int) else obj

    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", broadcast_other_step)
    with pytest.raises(
        UserError, match=r"from step 0 but rank 0 from step 3, since the shared file system .*resume=PATH"
    ):
        tiny.fit(tiny.first_stage(), [tiny.batch(1)], [Checkpoint(str(tmp_path))])


def test_the_last_step_is_saved_after_the_other_callbacks(tmp_path):
    """Otherwise a kill in between would leave a finished run without its model file."""
    names_before = []

    class ListFiles(Callback):
        def on_train_end(self, *_) -> None:
            names_before.extend(names(tmp_path))

    tiny.fit(
        tiny.first_stage(), [tiny.batch(1)] * 4, [ListFiles(), Checkpoint(str(tmp_path), every_n_steps=2)]
    )
    assert names_before == ["step00000002.ckpt"]
    assert names(tmp_path) == ["step00000002.ckpt", "step00000004.ckpt"]


def test_milestones_are_kept(tmp_path):
    tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 7, [Checkpoint(str(tmp_path), 1, 2, milestone_every=3)])
    assert names(tmp_path) == [f"step0000000{step}.ckpt" for step in (3, 5, 6, 7)]


def test_holds_the_metadata_of_its_run(tmp_path):
    saver = Checkpoint(str(tmp_path))
    saver.metadata = {"config": "seed: 3"}
    tiny.fit(tiny.first_stage(), [tiny.batch(1)], [saver])
    metadata = torch.load(newest_checkpoint(tmp_path), weights_only=True)["ldm"]
    assert metadata["config"] == "seed: 3" and metadata["version"] and metadata["loggers"] == {}


def test_the_newest_intact_one_is_used(tmp_path, caplog):
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
    assert caplog.text.count("is corrupt") == 2
    (tmp_path / "step00000001.ckpt").write_bytes(b"")
    assert newest_checkpoint(tmp_path) is None, "a fresh start"


def test_the_hash_file_is_read_by_sha256sum(tmp_path):
    path = tmp_path / "step00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(2)}, path)
    subprocess.run(["sha256sum", "--check", "--status", f"{path.name}.sha256"], cwd=tmp_path, check=True)


def test_a_file_that_is_overwritten_never_has_the_hash_of_another(tmp_path, monkeypatch):
    path = tmp_path / "step00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(2)}, path)
    intact, replace, sync = [], os.replace, atomic.sync
    monkeypatch.setattr(os, "replace", lambda *args: (intact.append(is_intact(path)), replace(*args)))
    monkeypatch.setattr(atomic, "sync", lambda file: (intact.append(is_intact(path)), sync(file)))
    AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(2)}, path)
    assert intact == [True] * 5 and is_intact(path), (
        "at the flush before the rename, at the rename, at the flush after it, and at those of the hash"
    )


def test_a_failed_flush_keeps_the_older_file_and_its_hash(tmp_path, monkeypatch):
    path = tmp_path / "step00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(2)}, path)
    older = path.read_bytes()

    def full(_) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="no space left"):
        AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(2)}, path)
    assert path.read_bytes() == older and names(tmp_path) == [path.name]


@pytest.fixture
def full_disk():
    """Limits the size of files, as a full disk does; Python ignores the signal that comes with it."""

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_full_disk_keeps_the_older_one_and_warns(tmp_path, full_disk, caplog):
    class FillDisk(Callback):
        def on_train_batch_end(self, trainer, *_):
            full_disk(4096 if trainer.global_step == 4 else resource.RLIM_INFINITY)

    saver = Checkpoint(str(tmp_path), every_n_steps=2, keep=3)
    tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 6, [FillDisk(), saver])
    assert names(tmp_path) == ["step00000002.ckpt", "step00000006.ckpt"]
    assert (
        "step00000004.ckpt cannot be written (File too large)" in caplog.text
        and "the older checkpoint is kept" in caplog.text
    )


def test_three_failures_in_a_row_end_the_run(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise WriteError("no space left on device", "free some")

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", fails)
    with pytest.raises(UserError, match="no space left on device, 3 times in a row: .*resume=auto"):
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 9, [Checkpoint(str(tmp_path), every_n_steps=2)])
    with pytest.raises(UserError, match="no space left on device: .*resume=auto"):
        tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 3, [Checkpoint(str(tmp_path), every_n_steps=2)])


def test_too_little_free_space_is_noticed_before_writing(tmp_path, monkeypatch):
    saver = AtomicCheckpointIO()
    saver.save_checkpoint({"weight": torch.ones(9000)}, tmp_path / "step00000001.ckpt")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=30_000))
    with pytest.raises(WriteError, match="30,000 bytes are free, but the last checkpoint took 3"):
        saver.save_checkpoint({"weight": torch.ones(9000)}, tmp_path / "step00000002.ckpt")
    assert names(tmp_path) == ["step00000001.ckpt"]
