"""Train through SLURM: `python -m ldm.cli.submit experiment=NAME nodes=4 hours=12 [key=value ...]`."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.cli.config.command import user_errors
from ldm.cli.config.compose import compose
from ldm.cli.training import preflight_login_node
from ldm.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "train.sbatch"
USAGE = """usage: python -m ldm.cli.submit experiment=NAME [nodes=4 hours=12 ...] [key=value ...]

Fills in slurm/train.sbatch, shows it and submits it; the settings of train.py are checked before.
its own keys are those of configs/submit.yaml:

"""


def main() -> None:
    """Check the training's settings, write the script beside the run, show it, submit it."""
    with user_errors():
        if set(sys.argv[1:]) & {"-h", "--help"}:
            print(USAGE + (SCRIPT.parents[1] / "configs" / "submit.yaml").read_text())
            return
        job, words = split(sys.argv[1:])
        cfg = compose("train", words)
        check(job)
        check_batch_divides(cfg, job)
        preflight_login_node.check(cfg, job.tasks, job.nodes)
        file = Path(cfg.run) / "train.sbatch"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(fill_script(SCRIPT.read_text(), job, cfg.name, cfg.run))
        command = ["sbatch", str(file), *words]
        print(f"{file}:\n\n{file.read_text()}\n{shlex.join(command)}", flush=True)
        if not job.dry:
            submit(command)


def split(words: list[str]) -> tuple[DictConfig, list[str]]:
    """The job's settings, and what is left for train.py."""
    own = {str(key) for key in compose("submit", [])}
    ours = [word for word in words if word.partition("=")[0] in own]
    return compose("submit", ours), [word for word in words if word not in ours]


def check(job: DictConfig) -> None:
    """UserError for numbers that no cluster takes."""
    least = {"nodes": 1, "gpus": 0, "tasks": 1, "cpus": 1, "signal": 30}
    for key, number in least.items():
        if not isinstance(job[key], int):
            raise UserError(f"{key} must be a whole number, not {job[key]}")
        if job[key] < number:
            also = ", and with gpus=0 say how many processes, tasks=2 for one" if key == "tasks" else ""
            raise UserError(f"{key} must be {number} or more, not {job[key]}{also}")
    if not 0 < job.hours:
        raise UserError(f"hours must be above 0, not {job.hours}")
    if job.signal >= 60 * minutes(job.hours):
        raise UserError(
            f"signal={job.signal} comes {job.signal} s before the end of hours={job.hours:g}, before its "
            "start: it would be stopped and queued again for ever, give signal=30, say, or more hours"
        )


def check_batch_divides(cfg: DictConfig, job: DictConfig) -> None:
    """UserError for a batch that has no equal shares."""
    ranks, batch = job.nodes * job.tasks, cfg.data.global_batch_size
    if isinstance(batch, int) and batch % ranks:
        raise UserError(
            f"data.global_batch_size={batch} does not divide over nodes={job.nodes} x tasks={job.tasks}: "
            f"give data.global_batch_size={max(round(batch / ranks), 1) * ranks}, say"
        )


def fill_script(script: str, job: DictConfig, name: str, run: str) -> str:
    """The script with this job's #SBATCH lines in place of its own; its other lines stay as they are."""
    values: dict[str, Any] = {
        "job-name": name,
        "nodes": job.nodes,
        "ntasks-per-node": job.tasks,
        "gpus-per-node": job.gpus or None,
        "cpus-per-task": job.cpus,
        "time": slurm_time(job.hours),
        "signal": f"USR1@{job.signal}",
        "output": f"{run}/%x-%j.log",
    }
    for option, value in values.items():
        line = "" if value is None else f"#SBATCH --{option}={value}\n"
        script, found = re.subn(rf"(?m)^#SBATCH --{option}=.*\n", line, script)
        assert found == 1, option
    more = {key: job[key] for key in ("partition", "account", "qos", "constraint", "reservation", "mem")}
    lines = "".join(f"#SBATCH --{key}={value}\n" for key, value in more.items() if value is not None)
    return script.replace("#SBATCH --requeue\n", f"{lines}#SBATCH --requeue\n")


def slurm_time(hours: float) -> str:
    """Hours as SLURM writes them, to the minute, one at least."""
    return f"{minutes(hours) // 60:02d}:{minutes(hours) % 60:02d}:00"


def minutes(hours: float) -> int:
    """What SLURM counts a time limit in."""
    return max(round(hours * 60), 1)


def submit(command: list[str]) -> None:
    """Hand it to SLURM; UserError with its words where it refuses."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch on this machine: submit from the cluster's login node, or give dry=true"
        )
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"SLURM refuses the job: {' '.join(done.stderr.split())}")
    print(done.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
