"""A training of two tasks on a real SLURM that is stopped in every way: `make test-slurm` starts the cluster.

Each way must end in the same bits as a training that nobody stopped. `make test-slurm WAYS="killed sweep"`
alone tries some of them; the names are those of the functions in WAYS.
"""

import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "runs" / "slurm_test"
STEPS = 40
SLOW = "+callbacks.slow={_target_: tests.slurm.parts.Slow, seconds: %s}"
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
BEGUN = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGUN:4.0f} s] {text}", flush=True)


def shell(*words: str) -> str:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def submit(run: str, *words: str, hours: float = 0.5, signal: int = 60) -> int:
    """The number of a job of two CPU tasks that trains into RUNS/run."""
    job = ["nodes=1", "gpus=0", "tasks=2", "cpus=1", f"hours={hours}", f"signal={signal}"]
    training = ["experiment=debug/ae", f"run={RUNS / run}", f"data.shards={RUNS / 'images'}"]
    more = [
        f"trainer.max_steps={STEPS}",
        "callbacks.checkpoint.every_n_steps=5",
        "data.num_workers=1",
        *words,
    ]
    out = shell(sys.executable, "-m", "ldm.cli.submit", *job, *training, *more)
    number = int(re.findall(r"Submitted batch job (\d+)", out)[0])
    say(f"{run}: job {number}")
    return number


def field(job: int, name: str) -> str:
    """What `scontrol show job` says of a job."""
    return re.findall(rf"\b{name}=(\S+)", shell("scontrol", "show", "job", "-o", str(job)))[0]


def wait(job: int, done: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"job {job} is {field(job, 'JobState')} after {seconds} s"
        time.sleep(0.5)


def finish(job: int, state: str = "COMPLETED", seconds: float = 600) -> None:
    """Wait until the job has ended in `state`; a requeued job waits 5 s, not its two minutes.

    Started again within a second, it failed before its first line: a node refuses the credential of a job
    that it has just been told to end.
    """
    queued: list[float] = []

    def ended() -> bool:
        found = field(job, "JobState")
        if found == "PENDING" and field(job, "Restarts") != "0":
            queued.append(time.monotonic())
            if queued[-1] - queued[0] > 5:
                subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True)
        return found in ENDS

    wait(job, ended, seconds)
    found = field(job, "JobState"), field(job, "Restarts"), field(job, "ExitCode")
    say(f"job {job} ended: {found[0]}, restarts {found[1]}, exit {found[2]}")
    assert found[0] == state, log(job)


def log(job: int) -> str:
    return Path(field(job, "StdOut")).read_text()


def training_at(run: str, step: int) -> Callable[[], bool]:
    """Whether the run has passed a step."""

    def passed() -> bool:
        table = RUNS / run / "metrics.csv"
        return table.is_file() and any(
            line.split(",")[0].isdigit() and int(line.split(",")[0]) >= step
            for line in table.read_text().splitlines()
        )

    return passed


def rank(job: int, number: int) -> int:
    """The process of one rank."""
    wanted = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={number}"}

    def found() -> Iterator[int]:
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    environment = set((folder / "environ").read_text().split("\0"))
                    words = (folder / "cmdline").read_text().split("\0")
                except (OSError, UnicodeDecodeError):
                    continue
                if wanted <= environment and len(words) > 1 and words[1] == "train.py":
                    yield int(folder.name)

    return min(found())  # the loader's workers came later


def final(run: str) -> dict:
    """What the last checkpoint says of weights, optimizers and average."""
    saved = torch.load(RUNS / run / "checkpoints" / f"step{STEPS:08d}.ckpt", weights_only=True)
    return {key: saved[key] for key in ("global_step", "state_dict", "optimizer_states")} | saved[
        "callbacks"
    ]["EMA"]


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


def same(run: str) -> None:
    """The run ended in the bits of the one that nobody stopped, and left its model file."""
    assert (RUNS / run / "autoencoder.safetensors").is_file()
    assert equal(final("straight"), final(run)), f"{run} ended in other weights"
    say(f"{run}: bit-identical to the run that nobody stopped")


def time_limit() -> None:
    """SLURM's own signal before the limit: saved, requeued, gone on."""
    job = submit("limit", SLOW % 4, hours=0.05, signal=60)  # it comes 60 to 120 s after the start
    finish(job)
    assert field(job, "Restarts") != "0" and "saved and queued again" in log(job), log(job)
    print(log(job))
    same("limit")


def cancelled() -> None:
    """scancel: saved, not requeued; submitted again it goes on."""
    job = submit("cancelled", SLOW % 1)
    wait(job, training_at("cancelled", 6))
    shell("scancel", str(job))
    finish(job, "CANCELLED")
    assert "asked to stop: saved step" in log(job), log(job)
    finish(submit("cancelled"))
    same("cancelled")


def killed() -> None:
    """kill -9 of one rank: the job ends in seconds, and goes on from the last checkpoint."""
    job = submit("killed", SLOW % 1)
    wait(job, training_at("killed", 6))
    at = time.monotonic()
    os.kill(rank(job, 1), 9)
    finish(job, "FAILED", seconds=60)
    say(f"a dead rank ended the job in {time.monotonic() - at:.1f} s")
    assert time.monotonic() - at < 30
    finish(submit("killed"))
    same("killed")


def hung() -> None:
    """A rank that hangs: all write where they stand, and the job ends in failure."""
    hang = "+callbacks.hang={_target_: tests.slurm.parts.Hang}"
    job = submit("hung", hang, "callbacks.watchdog.seconds=40", "+callbacks.watchdog.grace=5")
    finish(job, "FAILED")
    stacks = [(RUNS / "hung" / "stacks" / f"rank{i}.txt").read_text() for i in (0, 1)]
    assert "in backward" in stacks[0] and "parts.py" in stacks[1], stacks
    say("hung: both ranks said where they stood")


def last_step() -> None:
    """A signal in the last step: the job completes."""
    finish(submit("last", "+callbacks.end={_target_: tests.slurm.parts.SignalAtTheEnd}"))
    same("last")


def sweep() -> None:
    """Six points, one job each, through submitit; then one table and plot."""
    launcher = ["gpus_per_node=null", "cpus_per_task=1", "timeout_min=10", "array_parallelism=2"]
    shell(
        sys.executable, "train.py", "-m", "hydra/launcher=slurm", *(f"hydra.launcher.{w}" for w in launcher),
        f"hydra.sweep.dir={RUNS / 'multirun'}", "experiment=debug/ae", f"data.shards={RUNS / 'images'}",
        f"data.val_shards={RUNS / 'images'}",
        "optimizer.lr=1e-4,3e-4,1e-3", "stage.perceptual_weight=0.5,1",
        f"run={RUNS}/sweep/" + "${optimizer.lr}_${stage.perceptual_weight}",
    )  # fmt: skip
    runs = sorted(str(path) for path in (RUNS / "sweep").iterdir())
    assert len(runs) == 6, runs
    out = shell(sys.executable, "-m", "ldm.cli.compare", *runs, "--out", str(RUNS / "compare.png"))
    say(f"the sweep:\n{out}")


WAYS = {way.__name__: way for way in (time_limit, cancelled, killed, hung, last_step, sweep)}


def main() -> None:
    """The run that nobody stops first, then all ways at once: SLURM has room for two jobs."""
    names = sys.argv[1:] or list(WAYS)
    if unknown := sorted(set(names) - WAYS.keys()):
        sys.exit(f"error: no way {', '.join(unknown)}; there are: {', '.join(WAYS)}")
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # what the jobs call python
    shutil.rmtree(RUNS, ignore_errors=True)
    shell(sys.executable, "-m", "ldm.cli.pack", "source=demo", "source.count=64", f"out={RUNS / 'images'}")
    finish(submit("straight"))
    with ThreadPoolExecutor(len(WAYS)) as pool:
        tried = [pool.submit(WAYS[name]) for name in names]
        for way in as_completed(tried):
            if way.exception():
                print("".join(traceback.format_exception(way.exception())), flush=True)
    if failed := [name for name, way in zip(names, tried, strict=True) if way.exception()]:
        sys.exit(f"error: failed: {', '.join(failed)}")
    say("passed")


if __name__ == "__main__":
    main()
