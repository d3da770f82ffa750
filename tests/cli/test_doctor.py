"""What a machine is asked before a long run."""

import resource
import shutil
import sys
from collections import namedtuple

import pytest

from ldm.cli import doctor
from ldm.data.demo.scenes import DemoScenes
from ldm.data.shards import write_shards

LINES = (
    "settings", "processes", "precision", "shared memory", "open files",
    "shards", "weights", "disk", "checkpoint", "W&B",
)  # fmt: skip


@pytest.fixture
def shell(monkeypatch, capsys, tmp_path):
    write_shards(DemoScenes("train", 12), tmp_path / "pictures")

    def run(*words) -> tuple[int, dict[str, str], str]:
        given = ["experiment=debug_ae", f"data.shards={tmp_path / 'pictures'}", f"run={tmp_path / 'run'}"]
        monkeypatch.setattr(sys, "argv", ["doctor", *given, *words])
        status = 0
        try:
            doctor.main()
        except SystemExit as error:
            status = int(error.code or 0)
        out, err = capsys.readouterr()
        return status, {line[:14].strip(): line[15:] for line in out.splitlines()}, err

    return run


def test_a_machine_that_will_do(shell, tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**6, 10**6))
    status, said, err = shell()
    assert status == 0 and "error" not in err
    assert tuple(said)[:-1] == LINES
    assert said["shards"] == f"12 samples in 1 shard(s) of {tmp_path / 'pictures'}"
    assert "32-true on the CPU" in said["precision"] and "begins anew" in said["checkpoint"]
    assert not (tmp_path / "run").exists(), "it only looks"


def test_every_complaint_at_once_with_its_mend(shell, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**4))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    status, said, err = shell("data.num_workers=1", "data.global_batch_size=3", "trainer.devices=2")
    assert status == 2 and "debug_ae cannot run here, see the 4 line(s) that say NO" in err
    assert "NO: data.global_batch_size=3 does not divide over 2" in said["processes"]
    assert said["open files"] == "NO: at most 256 open files a process: run `ulimit -n 4096` before"
    assert said["shared memory"].startswith("NO: ") and "--shm-size=1g" in said["shared memory"]
    assert said["disk"].startswith("NO: ")


def test_weights_that_are_missing(shell):
    status, said, _ = shell("stage.init=/nowhere.safetensors")
    assert status == 2 and "/nowhere.safetensors" in said["weights"] and "not known" in said["disk"]
