"""Kill trials: `python -m tests.trials.kill --stage text --ranks 4 --trials 20`.

train.py runs once undisturbed, and once killed (SIGKILL to one rank or to all) at random moments, every third
in the middle of a checkpoint's writing, and started again by the same command. In the end both hold the same
weights, averages and optimizer states, bit for bit, and have read the same samples.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from ldm.callbacks.checkpoint import newest_checkpoint
from ldm.data.demo.scenes import DemoScenes
from ldm.data.shards import write_shards
from ldm.stages.base import Stage
from ldm.typing import Batch

ROOT = Path(__file__).parents[2]


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


@dataclass
class Job:
    """One run of train.py on some ranks, each a process of its own as under srun."""

    words: tuple[str, ...]
    run: Path
    ranks: int

    def start(self) -> list[subprocess.Popen]:
        """All ranks."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        cluster = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(self.ranks)}
        cluster |= {"LOCAL_WORLD_SIZE": str(self.ranks), "GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
        cluster |= {"TORCHELASTIC_RUN_ID": "kill", "WANDB_MODE": "disabled"}
        strategy = "ddp_find_unused_parameters_true" if self.ranks > 1 else "auto"
        words = [*self.words, f"run={self.run}", "resume=auto", f"trainer.devices={self.ranks}"]
        words += [f"trainer.strategy={strategy}", "+callbacks.samples._target_=tests.trials.kill.SampleLog"]
        words += [f"+callbacks.samples.folder={self.run}/samples"]
        self.run.mkdir(parents=True, exist_ok=True)
        return [
            subprocess.Popen(
                [sys.executable, "train.py", *words],
                cwd=ROOT,
                env={**os.environ, **cluster, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=open(self.run / f"out.{rank}", "a"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for rank in range(self.ranks)
        ]

    def finish(self) -> None:
        """Run to the end."""
        started = self.start()
        try:
            assert [rank.wait(600) for rank in started] == [0] * self.ranks, self.said()
        finally:
            _kill(started)

    def said(self) -> str:
        """The end of what the ranks wrote."""
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.run.glob("out.*")))

    def killed(self, rng: random.Random, while_saving: bool, one: bool) -> bool:
        """Run until a random moment after its first new step; whether it was still running then."""
        started, before = self.start(), self._lines()
        try:
            _until(lambda: self._lines() > before or _over(started))
            if while_saving:
                folder = self.run / "checkpoints"
                _until(lambda: any(folder.glob(".*.part")) or _over(started), pause=0)
            else:
                time.sleep(rng.random() * 2)
            alive = not _over(started)
            _kill([rng.choice(started)] if one else started)
            if one:  # the others find out, or the scheduler ends them
                _until(lambda: all(rank.poll() is not None for rank in started), seconds=20)
            return alive
        finally:
            _kill(started)

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
        return {**states, "ema": found["callbacks"]["EMA"]}


def _over(started: list[subprocess.Popen]) -> bool:
    return any(rank.poll() is not None for rank in started)


def _kill(started: list[subprocess.Popen]) -> None:
    for rank in started:
        if rank.poll() is None:
            os.killpg(rank.pid, signal.SIGKILL)
            rank.wait()


def _until(happened: Any, seconds: float = 300, pause: float = 0.02) -> None:
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
        return [
            d
            for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
            for d in differences(a, b, f"{where}.{i}")
        ]
    return [] if ours == theirs else [where]


def words(stage: str, folder: Path, steps: int) -> tuple[str, ...]:
    """The command of a tiny run on drawn scenes; stage 2 stands on a stage 1 of its own."""
    if not (folder / "shards").exists():
        write_shards(DemoScenes("train", 40), folder / "shards", shard_size=16)
    common = (f"data.shards={folder}/shards", "callbacks.pictures=null", "data.num_workers=1")
    if stage == "ae":
        return (
            "experiment=debug_ae",
            *common,
            f"trainer.max_steps={steps}",
            "callbacks.checkpoint.every_n_steps=3",
        )
    first = Job(words("ae", folder, 6), folder / "first_stage", 1)
    if not (first.run / "autoencoder.safetensors").exists():
        first.finish()
    weights = f"first_stage={first.run}/autoencoder.safetensors"
    return (
        "experiment=debug_text",
        weights,
        *common,
        f"trainer.max_steps={steps}",
        "callbacks.checkpoint.every_n_steps=3",
    )


def trial(
    stage: str, ranks: int, kills: int, folder: Path, steps: int, seed: int = 0, others: int = 0
) -> int:
    """Compare a killed run with an undisturbed one; how often it was killed while it ran.

    With `others` ranks, after half of the kills it goes on on that many, and only its samples are compared.
    """
    rng = random.Random(seed)
    command = words(stage, folder, steps)
    straight = Job(command, folder / f"{stage}{ranks}_straight", ranks)
    if not (straight.run / f"checkpoints/step{steps:08d}.ckpt").exists():
        straight.finish()
    job, hit = Job(command, folder / f"{stage}{ranks}_killed{others or ''}", ranks), 0
    for number in range(kills):
        if others and number == kills // 2:
            job.ranks = others
        hit += job.killed(rng, while_saving=number % 3 == 0, one=rng.random() < 0.5)
    job.ranks = others or ranks
    job.finish()
    assert samples(job.run / "samples") == samples(straight.run / "samples")
    if not others:
        assert (found := differences(straight.outcome(steps), job.outcome(steps))) == [], found
    return hit


def main() -> None:
    """The long version, by hand; where TMPDIR points does not matter, /dev/shm is another file system."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=("ae", "text"), default="ae")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--others", type=int, default=0, help="ranks after half of the kills; 0 is the same")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        began = time.monotonic()
        hit = trial(asked.stage, asked.ranks, asked.trials, Path(folder), asked.steps, others=asked.others)
        print(f"killed {hit} of {asked.trials} times, nothing differs ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
