"""What the doctor reports before a long run, one line per check."""

import resource
import shutil
from collections import namedtuple

import pytest
import wandb

from ldm.cli import doctor
from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.write_shards import write_shards
from tests.support.command_line import run_command

LINES = (
    "settings", "run folder", "processes", "precision", "shared memory", "open files", "trainer",
    "shards", "weights", "model and data", "disk", "checkpoint", "W&B",
)  # fmt: skip


@pytest.fixture
def run_doctor(tmp_path):
    write_shards(DemoScenes("train", 12), tmp_path / "images")

    def run(*words) -> tuple[int, dict[str, str], str]:
        defaults = ["experiment=debug/ae", f"data.shards={tmp_path / 'images'}", f"run={tmp_path / 'run'}"]
        status, out, err = run_command(doctor.main, *defaults, *words)
        return status, {line[:14].strip(): line[15:] for line in out.splitlines()}, err

    return run


def test_a_machine_that_can_run(run_doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**6, 10**6))
    status, lines, err = run_doctor()
    assert status == 0 and "error" not in err
    assert tuple(lines)[:-1] == LINES
    assert lines["shards"] == f"12 samples in 1 shard(s) of {tmp_path / 'images'}"
    assert "32-true on the CPU" in lines["precision"] and "starts at step 0" in lines["checkpoint"]
    assert not (tmp_path / "run").exists(), "it writes nothing"


def test_all_problems_are_reported_at_once(run_doctor, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**4))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    status, lines, err = run_doctor("data.num_workers=1", "data.global_batch_size=3", "trainer.devices=2")
    assert status == 2 and "debug_ae cannot run here, see the 3 line(s) that say NO" in err
    assert lines["processes"].startswith("NO: data.global_batch_size=3 ") and "2 proc" in lines["processes"]
    assert lines["open files"].startswith("up to 256 per process") and "4,096" in lines["open files"]
    assert lines["shared memory"].startswith("NO: ") and "--shm-size=1g" in lines["shared memory"]
    assert lines["disk"].startswith("NO: ")
    assert lines["trainer"] == "not known until this is fixed: processes"


def test_a_low_limit_on_open_files_is_a_warning(run_doctor, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    status, lines, _ = run_doctor()
    assert status == 0 and lines["open files"].startswith("low limit: 1,024 per process, 4,096 are enough")
    assert "data.num_workers" in lines["open files"] and "ulimit -Hn" in lines["open files"]


@pytest.mark.parametrize("devices", ["0", "[]"])
def test_after_a_failed_check_the_others_still_run(run_doctor, devices):
    status, lines, err = run_doctor(f"trainer.devices={devices}")
    assert status == 2 and lines["processes"].startswith("NO: ") and tuple(lines)[-1] == "W&B", err


def test_an_unexpected_exception_is_one_line(run_doctor, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: 1 / 0)
    status, lines, _ = run_doctor("data.num_workers=1")
    assert status == 2 and lines["disk"] == "NO: ZeroDivisionError: division by zero"
    assert "starts at step 0" in lines["checkpoint"]


@pytest.mark.parametrize(
    ("mode", "result"),
    [("offline", "offline"), ("disabled", "disabled"), ("online", "an API key is set, not")],
)
def test_the_account_of_wandb(run_doctor, monkeypatch, mode, result):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: True)
    assert run_doctor("logger=wandb")[1]["W&B"].startswith(result)


def test_weights_that_are_missing(run_doctor):
    status, lines, _ = run_doctor("stage.init=/nowhere.safetensors")
    assert status == 2 and "/nowhere.safetensors" in lines["weights"] and "not known" in lines["disk"]


@pytest.mark.parametrize(
    ("word", "line", "key"),
    [
        ("data.size=60", "model and data", "data.size=60"),
        ("trainer.precision=fp8", "trainer", "'fp8'"),
        ("trainer.strategy=abc", "trainer", "abc"),
    ],
)
def test_what_train_would_refuse_is_reported(run_doctor, word, line, key):
    status, lines, err = run_doctor(word)
    assert status == 2 and lines[line].startswith("NO: ") and key in lines[line], lines
    assert "see the 1 line(s) that say NO" in err
