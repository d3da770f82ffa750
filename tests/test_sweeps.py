"""The sweeps of configs/sweep/: the commands of W&B's agent compose, and every run has its own folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils as agent

import train
from ldm.cli import compare
from ldm.cli.config.compose import CONFIGS, compose, sweep_points
from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.write_shards import write_shards
from tests.support.command_line import run_command

SWEEPS = sorted((CONFIGS / "sweep").glob("*.yaml"))


def agent_command(sweep: dict, point: dict) -> list[str]:
    """Return the command line that the agent's own code builds for a point."""
    values = agent.create_sweep_command_args(
        {"args": {key: {"value": value} for key, value in point.items()}}
    )
    values |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]]}
    words = []
    for word in agent.create_sweep_command(sweep["command"]):
        words += values[word[2:-1]] if word.startswith("${") and word.endswith("}") else [word]
    return words


def extreme_values(parameter: dict) -> list[float]:
    return parameter.get("values") or [parameter["min"], parameter["max"]]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_the_agents_command_composes(path: Path, monkeypatch):
    sweep = yaml.safe_load(path.read_text())
    assert {"grid": "grid", "random": "random", "bayes": "bayes"}[path.stem] == sweep["method"]
    runs = set()
    for i in range(2):
        monkeypatch.setenv("WANDB_RUN_ID", f"point{i}")
        point = {key: extreme_values(parameter)[-i] for key, parameter in sweep["parameters"].items()}
        words = agent_command(sweep, point)
        assert words[:3] == ["/usr/bin/env", "python", "train.py"]
        cfg = compose("train", words[3:])
        runs.add(cfg.run)
        assert cfg.resume == "auto", "an interrupted run resumes"
        assert "wandb" in cfg.logger and cfg.optimizer.lr == point["optimizer.lr"]
    assert runs == {"runs/sweep/point0", "runs/sweep/point1"}
    assert sweep["metric"] == {"name": "val/loss", "goal": "minimize"} and cfg.data.val_shards


def test_bayes_ends_bad_runs_early():
    sweep = yaml.safe_load((CONFIGS / "sweep" / "bayes.yaml").read_text())
    assert sweep["early_terminate"]["type"] == "hyperband"
    assert "callbacks.preemption.status=0" in sweep["command"], "the agent would count it as failed"


def test_a_multirun_gives_every_run_a_folder():
    words = ["experiment=demo/text", "optimizer.lr=1e-3,2e-3,4e-3", "times.std=1.0,1.5"]
    points = sweep_points([*words, "run=runs/sweep/${optimizer.lr}_${times.std}"])
    assert len({compose("train", point).run for point in points}) == 3


def test_two_runs_by_multirun(tmp_path):
    """Each trains into its own folder, and one table compares them."""
    write_shards(DemoScenes("train", 12), tmp_path / "images")
    words = ["experiment=debug/ae", f"data.shards={tmp_path}/images", "trainer.max_steps=5"]
    words += [
        "callbacks.images=null",
        "optimizer.lr=1e-4,1e-3",
        f"run={tmp_path}/runs/" + "${optimizer.lr}",
    ]
    status, out, err = run_command(train.main, "-m", *words)
    assert status == 0 and out.count("wrote ") == 2, err
    runs = sorted(str(path) for path in (tmp_path / "runs").iterdir())
    assert [Path(run).name for run in runs] == ["0.0001", "0.001"]
    status, out, err = run_command(compare.main, *runs, "--out", tmp_path / "table.png")
    assert status == 0, err
    table = out.splitlines()
    assert table[0].split()[-1] == "optimizer.lr"
    assert {line.split()[-1] for line in table[1:3]} == {"0.0001", "0.001"}
    losses = {line.split()[2] for line in table[1:3]}
    assert len(losses) == 2, "the runs were trained with their own learning rates"


def test_an_array_task_is_stopped_before_its_time_limit_and_requeued(tmp_path):
    """The script's shell receives the signal, passes it on, waits and asks SLURM to requeue the task."""
    script = (CONFIGS.parent / "slurm" / "sweep.sbatch").read_text()
    assert "#SBATCH --signal=B:USR1@300\n" in script and "#SBATCH --requeue\n" in script
    fake_training = (
        "trap 'sleep 1; echo saved; exit 0' USR1; kill -USR1 $PPID; for _ in {1..200}; do sleep 0.1; done"
    )
    for name, text in (("srun", fake_training), ("scontrol", 'echo "scontrol $*"')):
        fake = tmp_path / name
        fake.write_text(f"#!/bin/bash\n{text}\n")
        fake.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
    }
    words = ["bash", "-c", script, "sweep", "me/ldm/sweep"]
    out = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60).stdout
    assert out.index("saved\n") < out.index("stopped and requeued") < out.index("scontrol requeue 7")


@pytest.mark.slow
def test_six_runs_by_the_agent_itself(tmp_path):
    """`wandb agent` against a fake server, then one table of its runs."""
    sweep = yaml.safe_load((CONFIGS / "sweep" / "grid.yaml").read_text())
    sweep["parameters"] = {
        "optimizer.lr": {"values": [1e-4, 1e-3, 1e-2]},
        "stage.perceptual_weight": {"values": [0.5, 1.0]},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    write_shards(DemoScenes("train", 12), tmp_path / "images")
    tiny = [
        "experiment=debug/ae",
        f"data.shards={tmp_path}/images",
        f"data.val_shards={tmp_path}/images",
        "trainer.max_steps=4",
        "adversary.start=2",
        "trainer.val_check_interval=2",
        f"run={tmp_path}/runs/" + "${oc.env:WANDB_RUN_ID}",
    ]
    environment = {**os.environ, "WANDB_DIR": str(tmp_path), "PYTHONPATH": "."}

    def python(*words: str) -> str:
        words = (sys.executable, "-m", *words)
        done = subprocess.run(words, cwd=CONFIGS.parent, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python("tests.support.wandb_agent", str(tmp_path / "sweep.yaml"), *tiny)
    runs = sorted(str(path) for path in (tmp_path / "runs").iterdir())
    assert [Path(run).name for run in runs] == [f"point{i}" for i in range(6)]
    assert all(list(Path(run).glob("wandb/offline-run-*/run-point*.wandb")) for run in runs)
    table = python("ldm.cli.compare", *runs, "--out", str(tmp_path / "table.png")).splitlines()
    assert set(table[0].split()[-2:]) == {"stage.perceptual_weight", "optimizer.lr"}
    assert len({tuple(line.split()[-2:]) for line in table[1:7]}) == 6
