"""Interrupt a training of two tasks on a real SLURM in every way: `make test-slurm` starts the cluster.

Each interrupted run must end bit-identical to an uninterrupted one. `make test-slurm WAYS="killed sweep"`
tests only some ways; the names are those of the functions in WAYS.
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
START = time.monotonic()


def log(text: str) -> None:
    """Print with the seconds since the start."""
    print(f"[{time.monotonic() - START:4.0f} s] {text}", flush=True)


def run_shell(*words: str) -> str:
    """Run a command that must succeed; return its stdout."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def submit(run: str, *words: str, hours: float = 0.5, signal: int = 60) -> int:
    """Submit a job of two CPU tasks that trains into RUNS/run; return its number."""
    job = ["nodes=1", "gpus=0", "tasks=2", "cpus=1", f"hours={hours}", f"signal={signal}"]
    training = ["experiment=debug/ae", f"run={RUNS / run}", f"data.shards={RUNS / 'images'}"]
    more = [
        f"trainer.max_steps={STEPS}",
        "callbacks.checkpoint.every_n_steps=5",
        "data.num_workers=1",
        *words,
    ]
    out = run_shell(sys.executable, "-m", "ldm.cli.submit", *job, *training, *more)
    number = int(re.findall(r"Submitted batch job (\d+)", out)[0])
    log(f"{run}: job {number}")
    return number


def job_field(job: int, name: str) -> str:
    """Return a field of `scontrol show job`."""
    return re.findall(rf"\b{name}=(\S+)", run_shell("scontrol", "show", "job", "-o", str(job)))[0]


def wait(job: int, done: Callable[[], bool], seconds: float = 240) -> None:
    """Wait until `done()`."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"job {job} is {job_field(job, 'JobState')} after {seconds} s"
        time.sleep(0.5)


def finish(job: int, state: str = "COMPLETED", seconds: float = 600) -> None:
    """Wait until the job has ended in `state`; a requeued job waits for 5 s instead of two minutes.

    Restarted within a second, it fails before its first line: the node rejects the credential of a job that
    it has just ended.
    """
    queued: list[float] = []

    def ended() -> bool:
        job_state = job_field(job, "JobState")
        if job_state == "PENDING" and job_field(job, "Restarts") != "0":
            queued.append(time.monotonic())
            if queued[-1] - queued[0] > 5:
                subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True)
        return job_state in ENDS

    wait(job, ended, seconds)
    end_state, restarts, exit_code = (job_field(job, name) for name in ("JobState", "Restarts", "ExitCode"))
    log(f"job {job} ended: {end_state}, restarts {restarts}, exit {exit_code}")
    assert end_state == state, read_log(job)


def read_log(job: int) -> str:
    """Return the job's log file."""
    return Path(job_field(job, "StdOut")).read_text()


def training_at(run: str, step: int) -> Callable[[], bool]:
    """Return a function that says whether the run has reached a step."""

    def reached() -> bool:
        table = RUNS / run / "metrics.csv"
        return table.is_file() and any(
            line.split(",")[0].isdigit() and int(line.split(",")[0]) >= step
            for line in table.read_text().splitlines()
        )

    return reached


def rank_process(job: int, rank: int) -> int:
    """Return the process id of one rank."""
    variables = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}"}

    def processes() -> Iterator[int]:
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    environment = set((folder / "environ").read_text().split("\0"))
                    words = (folder / "cmdline").read_text().split("\0")
                except (OSError, UnicodeDecodeError):
                    continue
                if variables <= environment and len(words) > 1 and words[1] == "train.py":
                    yield int(folder.name)

    return min(processes())  # the loader's workers were started later


def final_state(run: str) -> dict:
    """Return step, weights, optimizers and EMA of the last checkpoint."""
    saved = torch.load(RUNS / run / "checkpoints" / f"step{STEPS:08d}.ckpt", weights_only=True)
    state = {key: saved[key] for key in ("global_step", "state_dict", "optimizer_states")}
    return state | saved["callbacks"]["EMA"]


def equal(a: object, b: object) -> bool:
    """Return whether nested dicts and lists hold equal tensors and values."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


def check_same(run: str) -> None:
    """Check that the run ended bit-identical to the uninterrupted one, and exported its model file."""
    assert (RUNS / run / "autoencoder.safetensors").is_file()
    assert equal(final_state("straight"), final_state(run)), f"{run} ended with other weights"
    log(f"{run}: bit-identical to the uninterrupted run")


def time_limit() -> None:
    """SLURM's own signal before the limit: the run saves, is requeued and resumes."""
    job = submit("limit", SLOW % 4, hours=0.05, signal=60)  # it comes 60 to 120 s after the start
    finish(job)
    assert job_field(job, "Restarts") != "0" and "saved and requeued" in read_log(job), read_log(job)
    print(read_log(job))
    check_same("limit")


def cancelled() -> None:
    """scancel: the run saves and is not requeued; submitted again, it resumes."""
    job = submit("cancelled", SLOW % 1)
    wait(job, training_at("cancelled", 6))
    run_shell("scancel", str(job))
    finish(job, "CANCELLED")
    assert "saved step" in read_log(job), read_log(job)
    finish(submit("cancelled"))
    check_same("cancelled")


def killed() -> None:
    """kill -9 of one rank: the job ends within seconds and, submitted again, resumes from its checkpoint."""
    job = submit("killed", SLOW % 1)
    wait(job, training_at("killed", 6))
    at = time.monotonic()
    os.kill(rank_process(job, 1), 9)
    finish(job, "FAILED", seconds=60)
    log(f"a dead rank ended the job in {time.monotonic() - at:.1f} s")
    assert time.monotonic() - at < 30
    finish(submit("killed"))
    check_same("killed")


def hung() -> None:
    """A rank that hangs: all ranks write their stacks, and the job fails."""
    hang = "+callbacks.hang={_target_: tests.slurm.parts.Hang}"
    job = submit("hung", hang, "callbacks.watchdog.seconds=40", "+callbacks.watchdog.grace=5")
    finish(job, "FAILED")
    stacks = [(RUNS / "hung" / "stacks" / f"rank{i}.txt").read_text() for i in (0, 1)]
    assert "in backward" in stacks[0] and "parts.py" in stacks[1], stacks
    log("hung: both ranks wrote their stacks")


def last_step() -> None:
    """A signal in the last step: the job completes."""
    finish(submit("last", "+callbacks.end={_target_: tests.slurm.parts.SignalAtTheEnd}"))
    check_same("last")


def sweep() -> None:
    """Six runs, one job each, through submitit; then one table and plot."""
    launcher = ["gpus_per_node=null", "cpus_per_task=1", "timeout_min=10", "array_parallelism=2"]
    run_shell(
        sys.executable, "train.py", "-m", "hydra/launcher=slurm", *(f"hydra.launcher.{w}" for w in launcher),
        f"hydra.sweep.dir={RUNS / 'multirun'}", "experiment=debug/ae", f"data.shards={RUNS / 'images'}",
        f"data.val_shards={RUNS / 'images'}",
        "optimizer.lr=1e-4,3e-4,1e-3", "stage.perceptual_weight=0.5,1",
        f"run={RUNS}/sweep/" + "${optimizer.lr}_${stage.perceptual_weight}",
    )  # fmt: skip
    runs = sorted(str(path) for path in (RUNS / "sweep").iterdir())
    assert len(runs) == 6, runs
    out = run_shell(sys.executable, "-m", "ldm.cli.compare", *runs, "--out", str(RUNS / "compare.png"))
    log(f"the sweep:\n{out}")


WAYS = {way.__name__: way for way in (time_limit, cancelled, killed, hung, last_step, sweep)}


def main() -> None:
    """Train without an interruption first, then test all ways at once: SLURM runs two jobs at a time."""
    names = sys.argv[1:] or list(WAYS)
    if unknown := sorted(set(names) - WAYS.keys()):
        sys.exit(f"error: unknown WAYS {', '.join(unknown)}: use some of {', '.join(WAYS)}")
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the jobs run `python`
    shutil.rmtree(RUNS, ignore_errors=True)
    run_shell(
        sys.executable, "-m", "ldm.cli.pack", "source=demo", "source.count=64", f"out={RUNS / 'images'}"
    )
    finish(submit("straight"))
    with ThreadPoolExecutor(len(WAYS)) as pool:
        results = [pool.submit(WAYS[name]) for name in names]
        for way in as_completed(results):
            if way.exception():
                print("".join(traceback.format_exception(way.exception())), flush=True)
    if failed := [name for name, way in zip(names, results, strict=True) if way.exception()]:
        sys.exit(f"error: failed: {', '.join(failed)}")
    log("passed")


if __name__ == "__main__":
    main()
