"""The script that goes to SLURM, and what is checked before it goes."""

import re
import stat
import sys
from pathlib import Path

import pytest
import wandb

from ldm.cli import submit
from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.write_shards import write_shards

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_shards(DemoScenes("train", 12), folder)
    return folder


@pytest.fixture
def shell(monkeypatch, capsys, tmp_path, images):
    def run(*words) -> tuple[int, str, str]:
        given = ["experiment=debug/ae", f"data.shards={images}", f"run={tmp_path / 'run'}"]
        given += ["data.global_batch_size=32"]
        monkeypatch.setattr(sys, "argv", ["submit", *given, *words])
        status = 0
        try:
            submit.main()
        except SystemExit as error:
            status = int(error.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def sbatch(monkeypatch, tmp_path):
    """A SLURM that says what it was told."""
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()

    def answers(script: str) -> None:
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")

    return answers


def lines(script: str) -> dict[str, str]:
    return dict(re.findall(r"(?m)^#SBATCH --([\w-]+)(?:=(.*))?$", script))


def test_writes_shows_and_submits(shell, sbatch, tmp_path):
    sbatch('shift; echo "Submitted batch job 12"; :')
    status, out, _ = shell("nodes=4", "hours=12.5", "partition=a100", "optimizer.lr=1e-3")
    script = (tmp_path / "run" / "train.sbatch").read_text()
    assert status == 0 and script in out and "Submitted batch job 12" in out
    found = lines(script)
    assert (found["nodes"], found["time"], found["partition"]) == ("4", "12:30:00", "a100")
    assert (found["ntasks-per-node"], found["gpus-per-node"], found["job-name"]) == ("8", "8", "debug_ae")
    assert found["signal"] == "USR1@300" and found["output"] == f"{tmp_path}/run/%x-%j.log"
    assert f"sbatch {tmp_path}/run/train.sbatch experiment=debug/ae" in out and "optimizer.lr=1e-3" in out
    assert 'train.py resume=auto "$@"' in script and "nodes=4" not in script.split("srun")[1]


def test_without_gpus_and_dry(shell):
    status, out, _ = shell("gpus=0", "tasks=2", "dry=true", "mem=8G", "hours=0.001", "signal=30")
    assert status == 0 and "Submitted" not in out
    found = lines(out)
    assert "gpus-per-node" not in found and (found["ntasks-per-node"], found["mem"]) == ("2", "8G")
    assert found["time"] == "00:01:00"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["optimzer.lr=1"], "no key 'optimzer.lr'"),
        (["nodes=0"], "nodes must be 1 or more, not 0"),
        (["gpus=0"], "tasks must be 1 or more, not 0, and with gpus=0 say how many processes"),
        (["nodes=1.5"], "nodes must be a whole number, not 1.5"),
        (["hours=0"], "hours must be above 0"),
        (["nodes=two"], "nodes is a number, not 'two'"),
        ([], "there is no sbatch on this machine"),
        (["hours=0.05"], "signal=300 comes 300 s before the end of hours=0.05, before its start"),
        (["nodes=3"], "data.global_batch_size=32 does not divide over nodes=3 x tasks=8: give"),
        (["trainer.max_steps=-4"], "trainer.max_steps must be 1 or more, not -4"),
        (["data.shards=/nowhere"], "there is no shard /nowhere: mend data.shards"),
        (["data.val_shards=/nowhere"], "there is no shard /nowhere: mend data.val_shards"),
        (["trainer.devices=3"], "trainer.devices=3, but srun started 8 processes on each of 1 nodes"),
        (["trainer.max_steps=4"], "discriminator starts at step 4, past the end of training at 4"),
        (["callbacks.ema.decay=2"], "the EMA's decay must lie in [0, 1), not 2"),
        (["stage.init=/nowhere.safetensors"], "there is no weight file /nowhere.safetensors"),
        (["resume=/nowhere.ckpt"], "there is no checkpoint /nowhere.ckpt"),
        (["logger=wandb"], "logger=wandb needs an account"),
        (["experiment=debug/text", "first_stage=/nope"], "there is no weight file /nope"),
        (["experiment=debug/text", "first_stage=null"], "stage 2 needs a trained first stage"),
    ],
)
def test_a_mistake_is_found_before_the_queue(shell, monkeypatch, tmp_path, words, sentence):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: False)
    status, _, err = shell(*words)
    assert status == 2 and sentence in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists() or not words, "the script itself is there to be looked at"


def test_slurms_own_refusal_is_passed_on(shell, sbatch):
    sbatch('echo "sbatch: error: invalid partition" >&2; exit 1')
    assert shell()[::2] == (2, "error: SLURM refuses the job: sbatch: error: invalid partition\n")


@pytest.mark.parametrize("script", sorted((ROOT / "slurm").iterdir()), ids=lambda p: p.name)
def test_a_script_passes_everything_on(script):
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n# sbatch ") and text.count("\n") <= 40
    assert '"$@"' in text and "#SBATCH --open-mode=append" in text and "# CONTAINER=" in text
