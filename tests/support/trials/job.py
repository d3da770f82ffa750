"""One run of train.py on several ranks, stopped in any way: what the trials are made of.

A rank is forked from a process that has imported everything, which makes a start of ten seconds one of two;
what it runs is train.py, from its first line, in a session of its own.
"""

import os
import random
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context, set_start_method
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

import train  # noqa: F401  the imports that a fork shares
from ldm.callbacks.checkpoint import newest_checkpoint
from ldm.stages.base import Stage
from ldm.typing import Batch

ROOT = Path(__file__).parents[3]
ELSEWHERE = "/dev/shm"
"""TMPDIR on another file system than the run's."""
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


class SampleLog(Callback):
    """Writes step, positions and keys of each batch of this rank to `folder/samples.RANK.STARTED`."""

    def __init__(self, folder: str) -> None:
        self.folder, self.file = Path(folder), None

    def on_train_batch_start(self, trainer: Trainer, stage: Stage, batch: Batch, _: int) -> None:  # type: ignore[override]
        if self.file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = open(
                self.folder / f"samples.{trainer.global_rank}.{time.time_ns()}", "w", buffering=1
            )
        for position, key in zip(batch["position"].tolist(), batch["key"], strict=True):
            self.file.write(f"{trainer.global_step} {position} {key}\n")


def samples(folder: Path) -> dict[int, tuple[int, str]]:
    """Position -> (step, key): each must be read in one step and as one sample, however often."""
    found: dict[int, tuple[int, str]] = {}
    for log in folder.glob("samples.*"):
        for line in log.read_text().splitlines():
            step, position, key = line.split(" ")
            assert found.setdefault(int(position), (int(step), key)) == (int(step), key), (log, line)
    return found


def rank_of(words: list[str], env: dict[str, str], out: Path, double: bool) -> None:
    """What one rank does."""
    os.setsid()
    said = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(ROOT)
    os.environ.update(env)
    tempfile.tempdir = None
    set_start_method("fork", force=True)  # of the loader's workers, as in a process of one's own
    torch.set_num_threads(1)
    if double:  # the stages go back to fp32 where half precision is too coarse
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    sys.argv = ["train.py", *words]
    runpy.run_path("train.py", run_name="__main__")


@dataclass
class Stopped:
    """How a job ended: whether it was still running then, how long it took, with which statuses."""

    running: bool
    seconds: float
    statuses: list[int | None] = field(default_factory=list)


@dataclass
class Job:
    """One run on some ranks, each a process of its own as under torchrun."""

    words: tuple[str, ...]
    run: Path
    ranks: int
    double: bool = False

    def start(self) -> list[BaseProcess]:
        """All ranks."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        cluster = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(self.ranks)}
        cluster |= {"LOCAL_WORLD_SIZE": str(self.ranks), "GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
        cluster |= {"TORCHELASTIC_RUN_ID": "kill", "WANDB_MODE": "disabled", "TMPDIR": ELSEWHERE}
        strategy = "ddp_find_unused_parameters_true" if self.ranks > 1 else "auto"
        words = [*self.words, f"run={self.run}", "resume=auto", f"trainer.devices={self.ranks}"]
        words += [
            f"trainer.strategy={strategy}",
            "+callbacks.samples._target_=tests.support.trials.job.SampleLog",
        ]
        words += [f"+callbacks.samples.folder={self.run}/samples"]
        self.run.mkdir(parents=True, exist_ok=True)
        started = [
            FORKS.Process(
                target=rank_of,
                args=(
                    words,
                    {**cluster, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    self.run / f"out.{rank}",
                    self.double,
                ),
            )
            for rank in range(self.ranks)
        ]
        for rank in started:
            rank.start()
        return started

    def finish(self, seconds: float = 900) -> None:
        """Run to the end."""
        started = self.start()
        try:
            until(lambda: all(rank.exitcode is not None for rank in started), seconds)
            assert [rank.exitcode for rank in started] == [0] * self.ranks, self.said()
        finally:
            kill(started)

    def said(self) -> str:
        """The end of what the ranks wrote."""
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.run.glob("out.*")))

    def stopped(self, rng: random.Random, number: signal.Signals, while_saving: bool, one: bool) -> Stopped:
        """Run until a random moment after its first new step, then send a signal to one rank or to all.

        With its workers, as a scheduler does. What has not ended after 20 s is killed.
        """
        started, before = self.start(), self._lines()
        try:
            until(lambda: self._lines() > before or _over(started))
            if while_saving:
                folder = self.run / "checkpoints"
                until(lambda: any(folder.glob(".*.part")) or _over(started), pause=0)
            else:
                time.sleep(rng.random() * 2)
            running, begun = not _over(started), time.monotonic()
            for rank in [rng.choice(started)] if one else started:
                send(rank, number)
            until(lambda: all(rank.exitcode is not None for rank in started), seconds=20)
            return Stopped(running, time.monotonic() - begun, [rank.exitcode for rank in started])
        finally:
            kill(started)

    def _lines(self) -> int:
        return sum(path.read_text().count("\n") for path in (self.run / "samples").glob("samples.*"))

    def outcome(self, step: int) -> dict[str, Any]:
        """What the last checkpoint holds."""
        path = newest_checkpoint(self.run / "checkpoints")
        assert path is not None and path.name == f"step{step:08d}.ckpt", (path, self.said())
        found = torch.load(path, weights_only=True)
        states = {
            key: found[key] for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers")
        }
        return {**states, "ema": found["callbacks"].get("EMA")}


def _over(started: list[BaseProcess]) -> bool:
    return any(rank.exitcode is not None for rank in started)


def send(rank: BaseProcess, number: signal.Signals) -> None:
    """To a rank and its workers."""
    try:
        os.killpg(rank.pid or 0, number)
    except ProcessLookupError:
        pass  # it has ended, or has no session yet


def kill(started: list[BaseProcess]) -> None:
    """Whatever still runs."""
    for rank in started:
        if rank.exitcode is None:
            send(rank, signal.SIGKILL)
            rank.kill()
            rank.join()


def until(happened: Callable[[], bool], seconds: float = 300, pause: float = 0.02) -> None:
    """Wait for something, at most so long."""
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(pause)


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where two states differ, bit for bit, through dicts and lists."""
    if isinstance(ours, torch.Tensor):
        return [] if ours.dtype == theirs.dtype and torch.equal(ours, theirs) else [where]
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return [where]
        return [d for key in ours for d in differences(ours[key], theirs[key], f"{where}.{key}")]
    if isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            return [where]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}.{i}")]
    return [] if ours == theirs else [where]
