"""Train experiments for equal time: `python -m studies.equal_time EXPERIMENT... --seconds 90 --out RUNS`."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.cli.config.command import user_errors
from ldm.cli.config.compose import compose
from ldm.cli.training import run_log
from ldm.cli.training.setup import model_kind
from ldm.errors import UserError
from ldm.interop import model_file
from studies import training_log

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
TRIAL_STEPS = 60
"""Steps of the trial that measures an experiment's speed; also the minimum number of training steps."""
TRIAL_LOG_EVERY = 10
"""Steps per log row of a trial."""
PLAN_FILE = "equal_time.json"
"""File in a run's folder with its planned number of steps, seconds and overrides."""
STEP_KEYS = (
    "trainer.val_check_interval",
    "learning_rate.warmup_steps",
    "callbacks.checkpoint.every_n_steps",
    "callbacks.images.every_n_steps",
)
"""Config keys of step counts, which are scaled with the number of training steps."""
ADVERSARY_STEP_KEYS = ("adversary.start", "adversary.warmup", "adversary.ramp_steps")
"""Further such keys of an experiment with a discriminator."""


def main() -> None:
    """Train each experiment for as many steps as fit into the time on this machine; run again to resume."""
    parser = argparse.ArgumentParser(prog="python -m studies.equal_time", description=main.__doc__)
    parser.add_argument(
        "arguments", nargs="+", metavar="ARG", help="experiments, and key=value overrides for all of them"
    )
    parser.add_argument(
        "--seconds", type=float, required=True, help="training time of each experiment, without validation"
    )
    parser.add_argument(
        "--trial", type=int, default=TRIAL_STEPS, help="steps of the speed trial, also the minimum trained"
    )
    parser.add_argument(
        "--out", required=True, help="folder of the runs; each experiment has its own folder in it"
    )
    args = parser.parse_args()
    with user_errors():
        experiments = [argument for argument in args.arguments if "=" not in argument]
        overrides = [argument for argument in args.arguments if "=" in argument]
        if args.seconds <= 0 or not experiments:
            raise UserError(
                f"got {len(experiments)} experiments and --seconds {args.seconds:g}: give at least one "
                "experiment and --seconds above 0"
            )
        if args.trial < 2 * TRIAL_LOG_EVERY:
            raise UserError(
                f"--trial {args.trial} is too short to measure a speed: give {2 * TRIAL_LOG_EVERY} or more"
            )
        train_all(experiments, Path(args.out), overrides, args.seconds, args.trial)


def train_all(experiments: list[str], out: Path, overrides: list[str], seconds: float, trial: int) -> None:
    """Run all trials in succession, so that the machine's load is the same, then train each experiment."""
    for name in experiments:  # report invalid settings before the first step
        compose("train", [f"experiment={name}", *overrides])
        read_plan(out / name, overrides, seconds)
    steps = {name: plan_steps(name, out, overrides, seconds, trial) for name in experiments}
    for name, n in steps.items():
        train_or_resume(name, out / name, overrides, n)
    for name, n in steps.items():
        summary = training_log.summarize(out / name)
        measured = None if summary is None else summary.seconds
        duration = "an unknown time" if measured is None else f"{measured:.0f} s"
        print(f"{name}: {n:,} steps took {duration} according to the log; planned: {seconds:g} s", flush=True)


def train_or_resume(name: str, run: Path, overrides: list[str], steps: int) -> None:
    """Train one experiment up to `steps` steps, from its newest checkpoint if there is one."""
    cfg = compose("train", [f"experiment={name}", *overrides])
    file = run / f"{model_kind(cfg)}.safetensors"
    if file.is_file() and int(model_file.read_header(file, model_kind(cfg))["step"]) >= steps:
        print(f"{name}: {steps:,} steps are done", flush=True)
        return
    run_training(name, run, overrides, scale_steps(cfg, steps) | {"resume": "auto"})


def read_plan(run: Path, overrides: list[str], seconds: float) -> int | None:
    """Return the planned number of steps; None for a new run, UserError if the plan has other settings."""
    path = run / PLAN_FILE
    if not path.is_file():
        return None
    plan = json.loads(path.read_text())
    if plan["seconds"] != seconds:
        raise UserError(
            f"{run} was planned for {plan['seconds']:g} seconds, not {seconds:g}: give another --out"
        )
    if plan.get("given", overrides) != overrides:  # plans of older versions lack this key
        planned, requested = (" ".join(given) or "no overrides" for given in (plan["given"], overrides))
        raise UserError(f"{run} was planned with {planned}, not with {requested}: give another --out")
    return int(plan["steps"])


def plan_steps(name: str, out: Path, overrides: list[str], seconds: float, trial: int) -> int:
    """Return the planned number of steps; a new run is planned after a trial of `trial` steps."""
    steps = read_plan(out / name, overrides, seconds)
    if steps is not None:
        return steps
    cfg, run = compose("train", [f"experiment={name}", *overrides]), out / "trials" / name
    run_trial(name, run, overrides, cfg, trial)
    steps = max(trial, round(seconds * images_per_second(run) / cfg.data.global_batch_size))
    (out / name).mkdir(parents=True, exist_ok=True)
    plan = {"seconds": seconds, "given": overrides, "steps": steps}
    (out / name / PLAN_FILE).write_text(json.dumps(plan) + "\n")
    return steps


def run_trial(name: str, run: Path, overrides: list[str], cfg: DictConfig, steps: int) -> None:
    """Train for `steps` steps to log the speed, without checkpoints or images."""
    shutil.rmtree(run, ignore_errors=True)
    no_output = {
        "callbacks.checkpoint": "null",
        "callbacks.images": "null",
        "stage.log_every": TRIAL_LOG_EVERY,
    }
    settings = {key: v for key, v in scale_steps(cfg, steps).items() if not key.startswith("callbacks.")}
    run_training(name, run, overrides, settings | no_output | {"trainer.val_check_interval": steps})


def images_per_second(run: Path) -> float:
    """Return a run's mean speed according to its log, without the first log row."""
    speeds = [v for _, v in run_log.read(run).columns.get("speed/images_per_second", [])][1:]
    if not speeds:
        raise UserError(f"{run} logged its speed less than twice: train it with a smaller stage.log_every")
    return len(speeds) / sum(1 / v for v in speeds)


def scale_steps(cfg: DictConfig, steps: int) -> dict[str, Any]:
    """Return overrides that train for `steps` steps, with the other step counts scaled in proportion."""
    keys = STEP_KEYS + (ADVERSARY_STEP_KEYS if cfg.stage.get("adversary") else ())
    values = {key: OmegaConf.select(cfg, key) for key in keys}
    factor = steps / cfg.trainer.max_steps
    scaled = {key: max(1, round(factor * value)) for key, value in values.items() if value}
    return {"trainer.max_steps": steps} | scaled


def run_training(name: str, run: Path, overrides: list[str], settings: dict[str, Any]) -> None:
    """Run train.py in another process, which prints its progress; UserError if it fails."""
    arguments = [f"experiment={name}", f"run={run}", *overrides, *(f"{k}={v}" for k, v in settings.items())]
    print(f"python train.py {' '.join(arguments)}", flush=True)
    if subprocess.run([sys.executable, str(TRAIN), *arguments]).returncode:
        raise UserError(f"training {name} failed, see the error above: run this command again to resume")


if __name__ == "__main__":
    main()
