"""What a machine is asked before a long run."""

import resource
import shutil
import sys
from collections import namedtuple

import pytest
import wandb

from ldm.cli import doctor
from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.write_shards import write_shards

LINES = (
    "settings", "processes", "precision", "shared memory", "open files",
    "shards", "weights", "disk", "checkpoint", "W&B",
)  # fmt: skip


@pytest.fixture
def shell(monkeypatch, capsys, tmp_path):
    write_shards(DemoScenes("train", 12), tmp_path / "images")

    def run(*words) -> tuple[int, dict[str, str], str]:
        given = ["experiment=debug/ae", f"data.shards={tmp_path / 'images'}", f"run={tmp_path / 'run'}"]
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
    assert said["shards"] == f"12 samples in 1 shard(s) of {tmp_path / 'images'}"
    assert "32-true on the CPU" in said["precision"] and "begins anew" in said["checkpoint"]
    assert not (tmp_path / "run").exists(), "it only looks"


def test_every_complaint_at_once_with_its_mend(shell, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**4))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    status, said, err = shell("data.num_workers=1", "data.global_batch_size=3", "trainer.devices=2")
    assert status == 2 and "debug_ae cannot run here, see the 3 line(s) that say NO" in err
    assert "NO: data.global_batch_size=3 does not divide over 2" in said["processes"]
    assert said["open files"] == "at most 256 a process, train.py raises it to 4,096"
    assert said["shared memory"].startswith("NO: ") and "--shm-size=1g" in said["shared memory"]
    assert said["disk"].startswith("NO: ")


def test_few_open_files_are_a_warning(shell, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    status, said, _ = shell()
    assert status == 0 and said["open files"].startswith("few: 1,024 a process, 4,096 are enough")
    assert "data.num_workers" in said["open files"] and "ulimit -Hn" in said["open files"]


@pytest.mark.parametrize("devices", ["0", "[]"])
def test_a_line_that_fails_lets_the_others_speak(shell, monkeypatch, devices):
    status, said, err = shell(f"trainer.devices={devices}")
    assert status == 2 and said["processes"].startswith("NO: ") and tuple(said)[-1] == "W&B", err


def test_a_check_that_breaks_is_one_line(shell, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: 1 / 0)
    status, said, _ = shell("data.num_workers=1")
    assert status == 2 and said["disk"] == "NO: ZeroDivisionError: division by zero"
    assert "begins anew" in said["checkpoint"]


@pytest.mark.parametrize(
    ("mode", "answer"),
    [("offline", "offline"), ("disabled", "disabled"), ("online", "a key is here, the server was not asked")],
)
def test_what_is_known_of_the_account(shell, monkeypatch, mode, answer):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: True)
    assert shell("logger=wandb")[1]["W&B"].startswith(answer)


def test_weights_that_are_missing(shell):
    status, said, _ = shell("stage.init=/nowhere.safetensors")
    assert status == 2 and "/nowhere.safetensors" in said["weights"] and "not known" in said["disk"]
