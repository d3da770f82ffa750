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
"""Steps of a trial, which measures an experiment's speed; also the fewest steps of a training run."""
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
"""Config keys, in steps, that scale with the number of training steps."""
ADVERSARY_STEP_KEYS = ("adversary.start", "adversary.warmup", "adversary.ramp_steps")
"""The same for an experiment with a discriminator."""


def main() -> None:
    """Train each experiment for as many steps as fit into the time on this machine; run again to resume."""
    parser = argparse.ArgumentParser(prog="python -m studies.equal_time", description=main.__doc__)
    parser.add_argument(
        "words", nargs="+", metavar="WORD", help="experiments, and key=value overrides for all of them"
    )
    parser.add_argument(
        "--seconds", type=float, required=True, help="training time of each, without validation"
    )
    parser.add_argument(
        "--trial", type=int, default=TRIAL_STEPS, help="steps that measure the speed, also the fewest trained"
    )
    parser.add_argument("--out", required=True, help="folder in which each experiment gets its run's folder")
    args = parser.parse_args()
    with user_errors():
        experiments = [word for word in args.words if "=" not in word]
        overrides = [word for word in args.words if "=" in word]
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
    """Run all trials one after another, under the same load of the machine, then train each experiment."""
    for name in experiments:  # find every mistake before the first step
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
    """Return the planned number of steps, None for a new run; UserError if its plan has other settings."""
    path = run / PLAN_FILE
    if not path.is_file():
        return None
    plan = json.loads(path.read_text())
    if plan["seconds"] != seconds:
        raise UserError(
            f"{run} was planned for {plan['seconds']:g} seconds, not {seconds:g}: give another --out"
        )
    if plan.get("given", overrides) != overrides:  # the first plans lack this key
        planned, requested = (" ".join(words) or "no overrides" for words in (plan["given"], overrides))
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
    """Train for a few steps to log the speed, with `cfg` scaled to them but no checkpoints or images."""
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
    """Return overrides that train for `steps` steps, with the other step counts in proportion."""
    keys = STEP_KEYS + (ADVERSARY_STEP_KEYS if cfg.stage.get("adversary") else ())
    values = {key: OmegaConf.select(cfg, key) for key in keys}
    factor = steps / cfg.trainer.max_steps
    scaled = {key: max(1, round(factor * value)) for key, value in values.items() if value}
    return {"trainer.max_steps": steps} | scaled


def run_training(name: str, run: Path, overrides: list[str], settings: dict[str, Any]) -> None:
    """Run train.py in its own process, which prints its log; UserError if it fails."""
    words = [f"experiment={name}", f"run={run}", *overrides, *(f"{k}={v}" for k, v in settings.items())]
    print(f"python train.py {' '.join(words)}", flush=True)
    if subprocess.run([sys.executable, str(TRAIN), *words]).returncode:
        raise UserError(f"training {name} failed, see the error above: run this command again to resume")


if __name__ == "__main__":
    main()
