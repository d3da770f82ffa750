"""One run of train.py on several ranks that can be stopped in any way, for the trials.

A rank is forked from a process that has imported everything, which shortens its start from ten seconds to
two. It runs train.py from its first line, in a session of its own.
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

import train  # noqa: F401  the imports that forked ranks share
from ldm.callbacks.checkpoint import newest_checkpoint
from ldm.stages.base import Stage
from ldm.typing import Batch

ROOT = Path(__file__).parents[3]
OTHER_FILE_SYSTEM = "/dev/shm"
"""TMPDIR, on another file system than the run."""
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


class SampleLog(Callback):
    """Writes step, position and key of each sample of this rank to `folder/samples.RANK.STARTED`."""

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


def read_samples(folder: Path) -> dict[int, tuple[int, str]]:
    """Return position -> (step, key), which must be the same however often the position was read."""
    samples: dict[int, tuple[int, str]] = {}
    for log in folder.glob("samples.*"):
        for line in log.read_text().splitlines():
            step, position, key = line.split(" ")
            assert samples.setdefault(int(position), (int(step), key)) == (int(step), key), (log, line)
    return samples


def run_rank(words: list[str], env: dict[str, str], out: Path, double: bool) -> None:
    """Run train.py as one rank, in a forked process."""
    os.setsid()
    output = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(ROOT)
    os.environ.update(env)
    tempfile.tempdir = None
    set_start_method(
        "fork", force=True
    )  # the default for the loader's workers, which the fork server changed
    torch.set_num_threads(1)
    if double:  # the stages compute in float64 where they would convert to fp32
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    sys.argv = ["train.py", *words]
    runpy.run_path("train.py", run_name="__main__")


@dataclass
class Stop:
    """How a job was stopped: whether it was running, the seconds until it ended, its ranks' exit statuses."""

    was_running: bool
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
        """Start all ranks."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        cluster = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(self.ranks)}
        cluster |= {"LOCAL_WORLD_SIZE": str(self.ranks), "GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
        cluster |= {"TORCHELASTIC_RUN_ID": "kill", "WANDB_MODE": "disabled", "TMPDIR": OTHER_FILE_SYSTEM}
        self.run.mkdir(parents=True, exist_ok=True)
        processes = [
            FORKS.Process(
                target=run_rank,
                args=(
                    self._arguments(),
                    {**cluster, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    self.run / f"out.{rank}",
                    self.double,
                ),
            )
            for rank in range(self.ranks)
        ]
        for process in processes:
            process.start()
        return processes

    def _arguments(self) -> list[str]:
        strategy = "ddp_find_unused_parameters_true" if self.ranks > 1 else "auto"
        return [
            *self.words,
            f"run={self.run}",
            "resume=auto",
            f"trainer.devices={self.ranks}",
            f"trainer.strategy={strategy}",
            "+callbacks.samples._target_=tests.support.trials.job.SampleLog",
            f"+callbacks.samples.folder={self.run}/samples",
        ]

    def finish(self, seconds: float = 900) -> None:
        """Run to the end."""
        processes = self.start()
        try:
            wait_until(lambda: all(process.exitcode is not None for process in processes), seconds)
            assert [process.exitcode for process in processes] == [0] * self.ranks, self.output_tail()
        finally:
            kill(processes)

    def output_tail(self) -> str:
        """Return the end of each rank's output."""
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.run.glob("out.*")))

    def run_and_stop(
        self, rng: random.Random, number: signal.Signals, while_saving: bool, only_one: bool
    ) -> Stop:
        """Run until a random moment after the first new step, then signal one rank or all, and their workers.

        Ranks that have not ended after 20 s are killed.
        """
        processes, lines_before = self.start(), self._num_lines()
        try:
            wait_until(lambda: self._num_lines() > lines_before or _any_exited(processes))
            if while_saving:
                folder = self.run / "checkpoints"
                wait_until(lambda: any(folder.glob(".*.part")) or _any_exited(processes), pause=0)
            else:
                time.sleep(rng.random() * 2)
            was_running, start = not _any_exited(processes), time.monotonic()
            for process in [rng.choice(processes)] if only_one else processes:
                send(process, number)
            wait_until(lambda: all(process.exitcode is not None for process in processes), seconds=20)
            return Stop(was_running, time.monotonic() - start, [process.exitcode for process in processes])
        finally:
            kill(processes)

    def _num_lines(self) -> int:
        return sum(path.read_text().count("\n") for path in (self.run / "samples").glob("samples.*"))

    def final_state(self, step: int) -> dict[str, Any]:
        """Return the states in the last checkpoint, which must be of this step."""
        path = newest_checkpoint(self.run / "checkpoints")
        assert path is not None and path.name == f"step{step:08d}.ckpt", (path, self.output_tail())
        checkpoint = torch.load(path, weights_only=True)
        keys = ("global_step", "state_dict", "optimizer_states", "lr_schedulers")
        return {**{key: checkpoint[key] for key in keys}, "ema": checkpoint["callbacks"].get("EMA")}


def _any_exited(processes: list[BaseProcess]) -> bool:
    return any(process.exitcode is not None for process in processes)


def send(process: BaseProcess, number: signal.Signals) -> None:
    """Send a signal to a rank and its workers."""
    try:
        os.killpg(process.pid or 0, number)
    except ProcessLookupError:
        pass  # it has ended, or has not created its session yet


def kill(processes: list[BaseProcess]) -> None:
    """Kill the ranks that still run."""
    for process in processes:
        if process.exitcode is None:
            send(process, signal.SIGKILL)
            process.kill()
            process.join()


def wait_until(condition: Callable[[], bool], seconds: float = 300, pause: float = 0.02) -> None:
    """Wait until `condition` holds, for at most `seconds`."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(pause)


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Return the paths at which two states differ by any bit, through dicts and lists."""
    if isinstance(ours, torch.Tensor):
        return [] if ours.dtype == theirs.dtype and torch.equal(ours, theirs) else [path]
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return [path]
        return [d for key in ours for d in differences(ours[key], theirs[key], f"{path}.{key}")]
    if isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            return [path]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}.{i}")]
    return [] if ours == theirs else [path]
