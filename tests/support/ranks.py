"""Start train.py on several ranks, and callbacks that disturb it."""

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
    """Delay every step by `seconds`, so that a signal arrives during training."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(self.seconds)


class Hang(Callback):
    """Hang the last rank in one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == trainer.world_size - 1:
            time.sleep(3600)


class Poison(Callback):
    """Make the last rank's images NaN in one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        if trainer.global_step == self.step and trainer.global_rank == trainer.world_size - 1:
            pixels = type(stage).pixels
            stage.pixels = lambda batch: pixels(stage, batch) * torch.nan  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        vars(stage).pop("pixels", None)


def srun(world: int, *words: str) -> list[subprocess.Popen]:
    """Start `train.py WORDS` as a step of a SLURM job on one node, each rank in its own process group."""
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


def wait_until(ranks: list[subprocess.Popen], condition: Callable[[], bool], seconds: float = 240) -> None:
    """Wait until `condition` holds, while all ranks run."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        for rank in ranks:
            assert rank.poll() is None, rank.communicate()[0]
        time.sleep(0.05)


def wait_for_exit(ranks: list[subprocess.Popen], seconds: float) -> list[int]:
    """Return the exit statuses; all ranks must exit within `seconds`, and any other is killed."""
    try:
        end = time.monotonic() + seconds
        return [rank.wait(max(end - time.monotonic(), 0.1)) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def has_logged(run: Path, step: int) -> Callable[[], bool]:
    """Return a function that tells whether the run has logged this step."""
    table = run / "metrics.csv"
    return lambda: table.is_file() and max(tiny.read_column(table, "train/loss"), default=0) >= step
