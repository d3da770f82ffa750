"""Train through SLURM: `python -m ldm.cli.submit experiment=NAME nodes=4 hours=12 [key=value ...]`."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import LightningEnvironment
from omegaconf import DictConfig

from ldm.atomic import write_file
from ldm.cli.config.command import user_errors
from ldm.cli.config.compose import compose
from ldm.cli.training.launcher import Launcher
from ldm.cli.training.preflight import Preflight
from ldm.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "train.sbatch"
USAGE = """usage: python -m ldm.cli.submit experiment=NAME [nodes=4 hours=12 ...] [key=value ...]

Checks the settings of train.py, fills in slurm/train.sbatch, prints it and submits it.
Its own keys are those of configs/submit.yaml, all others go to train.py:

"""


def main() -> None:
    """Check the training's settings, write the job script into the run's folder, print it, submit it."""
    with user_errors():
        if set(sys.argv[1:]) & {"-h", "--help"}:
            print(USAGE + (SCRIPT.parents[1] / "configs" / "submit.yaml").read_text())
            return
        job, words = split_arguments(sys.argv[1:])
        cfg = compose("train", words)
        check_job(job)
        check_batch_divides(cfg, job)
        Preflight(cfg, "submit", Launcher("srun", job.tasks, job.nodes, LightningEnvironment())).run()
        file = Path(cfg.run) / "train.sbatch"
        write_file(file, fill_script(SCRIPT.read_text(), job, cfg.name, cfg.run))
        command = ["sbatch", str(file), *words]
        print(f"{file}:\n\n{file.read_text()}\n{shlex.join(command)}", flush=True)
        if not job.dry:
            submit(command)


def split_arguments(words: list[str]) -> tuple[DictConfig, list[str]]:
    """Return the job's settings, and the arguments for train.py."""
    job_keys = {str(key) for key in compose("submit", [])}
    job_words = [word for word in words if word.partition("=")[0] in job_keys]
    return compose("submit", job_words), [word for word in words if word not in job_words]


def check_job(job: DictConfig) -> None:
    """Raise UserError for numbers that no cluster accepts."""
    minimum = {"nodes": 1, "gpus": 0, "tasks": 1, "cpus": 1, "signal": 30}
    for key, number in minimum.items():
        if not isinstance(job[key], int):
            raise UserError(f"{key} must be a whole number, not {job[key]}")
        if job[key] < number:
            hint = ": with gpus=0 give the processes per node, e.g. tasks=2" if key == "tasks" else ""
            raise UserError(f"{key} must be {number} or more, not {job[key]}{hint}")
    if not 0 < job.hours:
        raise UserError(f"hours must be above 0, not {job.hours}")
    if job.signal >= 60 * to_minutes(job.hours):
        raise UserError(
            f"signal={job.signal} stops the run {job.signal} s before the end of hours={job.hours:g}, which "
            "is before it starts, so it would be requeued forever: use e.g. signal=30, or more hours"
        )


def check_batch_divides(cfg: DictConfig, job: DictConfig) -> None:
    """Raise UserError unless the batch divides evenly over the job's processes."""
    ranks, batch_size = job.nodes * job.tasks, cfg.data.global_batch_size
    if isinstance(batch_size, int) and batch_size % ranks:
        raise UserError(
            f"data.global_batch_size={batch_size} is not divisible by nodes={job.nodes} x tasks={job.tasks}: "
            f"use e.g. data.global_batch_size={max(round(batch_size / ranks), 1) * ranks}"
        )


def fill_script(script: str, job: DictConfig, name: str, run: str) -> str:
    """Return the script with the #SBATCH lines of this job; its other lines stay as they are."""
    values: dict[str, Any] = {
        "job-name": name,
        "nodes": job.nodes,
        "ntasks-per-node": job.tasks,
        "gpus-per-node": job.gpus or None,
        "cpus-per-task": job.cpus,
        "time": format_time(job.hours),
        "signal": f"USR1@{job.signal}",
        "output": f"{run}/%x-%j.log",
    }
    for option, value in values.items():
        line = "" if value is None else f"#SBATCH --{option}={value}\n"
        script, count = re.subn(rf"(?m)^#SBATCH --{option}=.*\n", line, script)
        assert count == 1, option
    extra = {key: job[key] for key in ("partition", "account", "qos", "constraint", "reservation", "mem")}
    lines = "".join(f"#SBATCH --{key}={value}\n" for key, value in extra.items() if value is not None)
    return script.replace("#SBATCH --requeue\n", f"{lines}#SBATCH --requeue\n")


def format_time(hours: float) -> str:
    """Return hours in SLURM's format, rounded to minutes."""
    return f"{to_minutes(hours) // 60:02d}:{to_minutes(hours) % 60:02d}:00"


def to_minutes(hours: float) -> int:
    """Return whole minutes, at least 1: SLURM's unit of a time limit."""
    return max(round(hours * 60), 1)


def submit(command: list[str]) -> None:
    """Run sbatch and print its answer; UserError with its message if SLURM rejects the job."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch on this machine: submit from the cluster's login node, or use dry=true"
        )
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"SLURM rejected the job: {' '.join(done.stderr.split())}")
    print(done.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
