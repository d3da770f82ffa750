"""Starting train.py on several ranks, and what its tests put among its callbacks."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from ldm.stages.base import Stage
from tests.support import tiny

ROOT = Path(__file__).parents[2]


class Slow(Callback):
    """Every step takes `seconds` more, so that a signal comes in the middle of training."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(self.seconds)


class Hang(Callback):
    """The last rank never comes to the end of one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == trainer.world_size - 1:
            time.sleep(3600)


class Poison(Callback):
    """The last rank's images are NaN in one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        if trainer.global_step == self.step and trainer.global_rank == trainer.world_size - 1:
            clean = type(stage).pixels
            stage.pixels = lambda batch: clean(stage, batch) * torch.nan  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        vars(stage).pop("pixels", None)


def srun(world: int, *words: str) -> list[subprocess.Popen]:
    """`train.py WORDS` as a step of a SLURM job of one node, each rank in a process group of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(world), "SLURM_NNODES": "1"}
    job |= {"SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "train.py", *words],
            cwd=ROOT,
            env={**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for rank in range(world)
    ]


def wait(ranks: list[subprocess.Popen], until: Callable[[], bool], seconds: float = 240) -> None:
    """Until something has happened, while all ranks live."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "nothing happened"
        for rank in ranks:
            assert rank.poll() is None, rank.communicate()[0]
        time.sleep(0.05)


def ended(ranks: list[subprocess.Popen], seconds: float) -> list[int]:
    """The exit statuses; all must have ended by then, and none is left behind."""
    try:
        end = time.monotonic() + seconds
        return [rank.wait(max(end - time.monotonic(), 0.1)) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def passed(run: Path, step: int) -> Callable[[], bool]:
    """Whether the run has logged a step."""
    table = run / "metrics.csv"
    return lambda: table.is_file() and max(tiny.column(table, "train/loss"), default=0) >= step
