"""The job script that `submit` writes, and the mistakes that it finds before the job is in the queue."""

import re
import stat
from pathlib import Path

import pytest
import wandb

from ldm.cli import submit
from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.write_shards import write_shards
from tests.support.command_line import run_command

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_shards(DemoScenes("train", 12), folder)
    return folder


@pytest.fixture
def run_submit(tmp_path, images):
    def run(*words) -> tuple[int, str, str]:
        defaults = ["experiment=debug/ae", f"data.shards={images}", f"run={tmp_path / 'run'}"]
        return run_command(submit.main, *defaults, "data.global_batch_size=32", *words)

    return run


@pytest.fixture
def sbatch(monkeypatch, tmp_path):
    """A fake sbatch that runs the given shell script."""
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()

    def install(script: str) -> None:
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")

    return install


def parse_options(script: str) -> dict[str, str]:
    return dict(re.findall(r"(?m)^#SBATCH --([\w-]+)(?:=(.*))?$", script))


def test_it_writes_prints_and_submits_the_script(run_submit, sbatch, tmp_path):
    sbatch('shift; echo "Submitted batch job 12"; :')
    status, out, _ = run_submit("nodes=4", "hours=12.5", "partition=a100", "optimizer.lr=1e-3")
    script = (tmp_path / "run" / "train.sbatch").read_text()
    assert status == 0 and script in out and "Submitted batch job 12" in out
    options = parse_options(script)
    assert (options["nodes"], options["time"], options["partition"]) == ("4", "12:30:00", "a100")
    assert (options["ntasks-per-node"], options["gpus-per-node"]) == ("8", "8")
    assert options["job-name"] == "debug_ae"
    assert options["signal"] == "USR1@300" and options["output"] == f"{tmp_path}/run/%x-%j.log"
    assert f"sbatch {tmp_path}/run/train.sbatch experiment=debug/ae" in out and "optimizer.lr=1e-3" in out
    assert 'train.py resume=auto "$@"' in script and "nodes=4" not in script.split("srun")[1]


def test_without_gpus_and_dry(run_submit):
    status, out, _ = run_submit("gpus=0", "tasks=2", "dry=true", "mem=8G", "hours=0.001", "signal=30")
    assert status == 0 and "Submitted" not in out
    options = parse_options(out)
    assert "gpus-per-node" not in options and (options["ntasks-per-node"], options["mem"]) == ("2", "8G")
    assert options["time"] == "00:01:00"


@pytest.mark.parametrize(
    ("words", "phrases"),
    [
        (["optimzer.lr=1"], ["no key 'optimzer.lr'"]),
        (["nodes=0"], ["nodes must be a whole number in 1..2147483647, not 0"]),
        (["gpus=0"], ["tasks must be 1 or more, not 0", "gpus=0", "tasks=2"]),
        (["nodes=1.5"], ["nodes must be a whole number in 1..2147483647, not 1.5"]),
        (["hours=0"], ["hours must be a number in 1e-08..1000000, not 0"]),
        (["nodes=two"], ["nodes must be a number, not 'two': for example nodes=1"]),
        ([], ["no sbatch", "dry=true"]),
        (["hours=0.05"], ["signal=300", "hours=0.05", "signal=30"]),
        (["nodes=3"], ["data.global_batch_size=32", "nodes=3 x tasks=8", "data.global_batch_size=24"]),
        (["trainer.max_steps=-4"], ["trainer.max_steps must be a whole number in 1..2147483647, not -4"]),
        (["data.shards=/nowhere"], ["/nowhere", "data.shards"]),
        (["data.val_shards=/nowhere"], ["/nowhere", "data.val_shards"]),
        (["trainer.devices=3"], ["trainer.devices=3, but srun started 8 processes on each of 1 nodes"]),
        (["trainer.max_steps=4"], ["discriminator", "adversary.start=4", "trainer.max_steps=4"]),
        (["callbacks.ema.decay=2"], ["callbacks.ema", "decay", "not 2"]),
        (["stage.init=/nowhere.safetensors"], ["/nowhere.safetensors"]),
        (["resume=/nowhere.ckpt"], ["no checkpoint /nowhere.ckpt"]),
        (["logger=wandb"], ["logger=wandb", "logger.wandb.offline=true"]),
        (["experiment=debug/text", "first_stage=/nope"], ["/nope"]),
        (["experiment=debug/text", "first_stage=null"], ["stage 2", "first_stage=runs/NAME"]),
    ],
)
def test_a_mistake_is_found_before_the_queue(run_submit, monkeypatch, tmp_path, words, phrases):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: False)
    status, _, err = run_submit(*words)
    assert status == 2 and all(phrase in err for phrase in phrases) and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists() or not words, "without a mistake the script is there to look at"


def test_slurms_own_error_is_passed_on(run_submit, sbatch):
    sbatch('echo "sbatch: error: invalid partition" >&2; exit 1')
    status, _, err = run_submit()
    assert status == 2 and "SLURM" in err and err.endswith(": sbatch: error: invalid partition\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("script", sorted((ROOT / "slurm").iterdir()), ids=lambda p: p.name)
def test_a_script_passes_all_its_arguments_on(script):
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n# sbatch ") and text.count("\n") <= 40
    assert '"$@"' in text and "#SBATCH --open-mode=append" in text and "# CONTAINER=" in text
