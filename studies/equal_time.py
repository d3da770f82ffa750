"""Runs of equal time: `python -m studies.equal_time EXPERIMENT... --seconds 90 --out runs/equal`."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.cli import compare
from ldm.cli.config.command import user_errors
from ldm.cli.config.compose import compose
from ldm.cli.training.setup import kind
from ldm.errors import UserError
from ldm.interop import model_file
from studies import training_log

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
TRIAL = 60
"""Steps over which an experiment's speed is measured, and the fewest that it trains."""
TRIAL_ROW = 10
"""Steps to a row of a trial's log."""
PLAN = "equal_time.json"
"""In a run's folder: how many steps were planned, and for what."""
MOMENTS = (
    "trainer.val_check_interval",
    "learning_rate.warmup_steps",
    "callbacks.checkpoint.every_n_steps",
    "callbacks.images.every_n_steps",
)
"""Steps of an experiment that keep their place in it, however long it is."""
ONSET = ("adversary.start", "adversary.warmup", "adversary.ramp_steps")
"""The same of a discriminator, where there is one."""


def main() -> None:
    """Train each experiment for as many steps as fit into the time on this machine; to be started again."""
    parser = argparse.ArgumentParser(prog="python -m studies.equal_time", description=main.__doc__)
    parser.add_argument(
        "words", nargs="+", metavar="WORD", help="experiments, and key=value overrides of all of them"
    )
    parser.add_argument("--seconds", type=float, required=True, help="of training each, validation left out")
    parser.add_argument(
        "--trial", type=int, default=TRIAL, help="steps that measure the speed, also the fewest"
    )
    parser.add_argument("--out", required=True, help="a folder, in which each experiment's run gets its own")
    args = parser.parse_args()
    with user_errors():
        experiments = [word for word in args.words if "=" not in word]
        given = [word for word in args.words if "=" in word]
        if args.seconds <= 0 or not experiments:
            raise UserError("name experiments, and give them --seconds above 0")
        if args.trial < 2 * TRIAL_ROW:
            raise UserError(f"a --trial of {args.trial} steps measures nothing: give {2 * TRIAL_ROW} or more")
        equally(experiments, Path(args.out), given, args.seconds, args.trial)


def equally(experiments: list[str], out: Path, given: list[str], seconds: float, trial: int) -> None:
    """All trials one after another, so that they meet the same machine, then the trainings."""
    for name in experiments:  # every mistake before the first step
        compose("train", [f"experiment={name}", *given])
        known(out / name, given, seconds)
    steps = {name: planned(name, out, given, seconds, trial) for name in experiments}
    for name, n in steps.items():
        train(name, out / name, given, n)
    for name, n in steps.items():
        found = training_log.read(out / name)
        took = "an unknown time" if found is None or found.seconds is None else f"{found.seconds:.0f} s"
        print(f"{name}: {n:,} steps took {took} by its log, {seconds:g} s were planned", flush=True)


def train(name: str, run: Path, given: list[str], steps: int) -> None:
    """One experiment's `steps` steps, from where it stands."""
    cfg = compose("train", [f"experiment={name}", *given])
    file = run / f"{kind(cfg)}.safetensors"
    if file.is_file() and int(model_file.read_header(file, kind(cfg))["step"]) >= steps:
        print(f"{name}: {steps:,} steps are done", flush=True)
        return
    start(name, run, given, lengthened(cfg, steps) | {"resume": "auto"})


def known(run: Path, given: list[str], seconds: float) -> int | None:
    """The steps that were planned before, None of a new run; UserError where it was planned otherwise."""
    plan = run / PLAN
    if not plan.is_file():
        return None
    before = json.loads(plan.read_text())
    if before["seconds"] != seconds:
        raise UserError(
            f"{run} was planned for {before['seconds']:g} seconds, not {seconds:g}: give another --out"
        )
    if before.get("given", given) != given:  # the first plans did not note it
        was, now = (" ".join(words) or "nothing" for words in (before["given"], given))
        raise UserError(f"{run} was planned with {was} given, not {now}: give another --out")
    return int(before["steps"])


def planned(name: str, out: Path, given: list[str], seconds: float, trial: int) -> int:
    """Steps that take `seconds`, as they were measured when the run was first asked for."""
    before = known(out / name, given, seconds)
    if before is not None:
        return before
    cfg, run = compose("train", [f"experiment={name}", *given]), out / "trials" / name
    try_out(name, run, given, cfg, trial)
    steps = max(trial, round(seconds * images_a_second(run) / cfg.data.global_batch_size))
    (out / name).mkdir(parents=True, exist_ok=True)
    (out / name / PLAN).write_text(json.dumps({"seconds": seconds, "given": given, "steps": steps}) + "\n")
    return steps


def try_out(name: str, run: Path, given: list[str], cfg: DictConfig, steps: int) -> None:
    """A short training that has the same parts as the whole, whose config is `cfg`, for its speed."""
    shutil.rmtree(run, ignore_errors=True)
    quiet = {"callbacks.checkpoint": "null", "callbacks.images": "null", "stage.log_every": TRIAL_ROW}
    settings = {key: v for key, v in lengthened(cfg, steps).items() if not key.startswith("callbacks.")}
    start(name, run, given, settings | quiet | {"trainer.val_check_interval": steps})


def images_a_second(run: Path) -> float:
    """A run's speed by its log, the first steps left out."""
    speeds = [v for _, v in compare.read(run).columns.get("speed/images_per_second", [])][1:]
    if not speeds:
        raise UserError(f"{run} logged its speed less than twice: train it with a smaller stage.log_every")
    return len(speeds) / sum(1 / v for v in speeds)


def lengthened(cfg: DictConfig, steps: int) -> dict[str, Any]:
    """The settings that make an experiment of `steps` steps of it, all its moments in proportion."""
    keys = MOMENTS + (ONSET if cfg.stage.get("adversary") else ())
    found = {key: OmegaConf.select(cfg, key) for key in keys}
    share = steps / cfg.trainer.max_steps
    moved = {key: max(1, round(share * value)) for key, value in found.items() if value}
    return {"trainer.max_steps": steps} | moved


def start(name: str, run: Path, given: list[str], settings: dict[str, Any]) -> None:
    """train.py as the user would type it; UserError where it fails."""
    words = [f"experiment={name}", f"run={run}", *given, *(f"{k}={v}" for k, v in settings.items())]
    print(f"python train.py {' '.join(words)}", flush=True)
    if subprocess.run([sys.executable, str(TRAIN), *words]).returncode:
        raise UserError(f"{name} stopped, for the reason above: start this command again to go on")


if __name__ == "__main__":
    main()
