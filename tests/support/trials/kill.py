"""Stopped at random moments and started again by the same command: `python -m tests.support.trials.kill`.

train.py runs once undisturbed, and once stopped (SIGKILL or SIGTERM, to one rank or to all, every third time
in the middle of a checkpoint's writing) and started again. In the end both hold the same weights, averages
and optimizer states, bit for bit, and have read the same samples; gone on with on another number of ranks,
weights within 1e-9.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from ldm.callbacks.preemption import REQUEUE
from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.write_shards import write_shards
from tests.support.trials.job import ROOT, Job, Stopped, differences, samples

EXACT = ("trainer.precision=64-true", "callbacks.ema=null", "callbacks.skip_bad_steps=null")
"""A run in float64; the average is fp32 by design."""
CLOSE = 1e-9


def words(stage: str, folder: Path, steps: int) -> tuple[str, ...]:
    """The command of a tiny run on drawn scenes; stage 2 stands on a stage 1 of its own."""
    if not (folder / "shards").exists():
        write_shards(DemoScenes("train", 40), folder / "shards", shard_size=16)
    common = (f"data.shards={folder}/shards", "callbacks.images=null", "data.num_workers=1")
    common += (f"trainer.max_steps={steps}", "callbacks.checkpoint.every_n_steps=3")
    if stage == "ae":
        return ("experiment=debug/ae", *common)
    first = Job(words("ae", folder, 6), folder / "first_stage", 1)
    if not (first.run / "autoencoder.safetensors").exists():
        first.finish()
    return ("experiment=debug/text", f"first_stage={first.run}/autoencoder.safetensors", *common)


@dataclass(frozen=True)
class Trial:
    """So many stops of one stage on some ranks.

    Args:
        others: ranks on which it goes on after half of the stops; the run is then in float64. 0 is the same.
    """

    stage: str
    ranks: int
    stops: int
    others: int = 0
    told: str = "SIGKILL"
    steps_a_stop: int = 25

    def run(self, folder: Path, seed: int = 0) -> "Result":
        """Compare the stopped run with an undisturbed one."""
        began, steps, exact = time.monotonic(), self.steps_a_stop * self.stops, bool(self.others)
        command = words(self.stage, folder, steps) + (EXACT if exact else ())
        straight = Job(command, folder / f"{self.stage}{self.ranks}x{steps}{exact}", self.ranks, exact)
        if not (straight.run / f"checkpoints/step{steps:08d}.ckpt").exists():
            straight.finish()
        name = f"{self.stage}{self.ranks}to{self.others}_{self.told}"
        job = Job(command, folder / name, self.ranks, exact)
        ended = list(self._stops(job, random.Random(seed)))
        job.finish()
        assert samples(job.run / "samples") == samples(straight.run / "samples")
        ours, theirs = straight.outcome(steps), job.outcome(steps)
        if exact:
            pairs = ((ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())
            apart = max(float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel())
        else:
            assert (found := differences(ours, theirs)) == [], found
            apart = 0.0
        return Result(self, ended, apart, time.monotonic() - began)

    def _stops(self, job: Job, rng: random.Random) -> Iterator[Stopped]:
        for number in range(self.stops):
            if self.others and number == self.stops // 2:
                job.ranks = self.others
            yield job.stopped(rng, Signals[self.told], while_saving=number % 3 == 0, one=rng.random() < 0.5)


@dataclass
class Result:
    """What a trial came to; `apart` is the largest difference of a weight, 0 where all bits are the same."""

    trial: Trial
    ended: list[Stopped]
    apart: float
    seconds: float

    @property
    def hit(self) -> list[Stopped]:
        """The stops that came while it ran."""
        return [stopped for stopped in self.ended if stopped.running]

    @property
    def hung(self) -> int:
        """How many had to be killed; of those asked to stop, how many did not say so by their status, too."""
        asked = [REQUEUE, *[0] * (max(self.trial.ranks, self.trial.others) - 1)]
        if self.trial.told == "SIGKILL":
            return sum(None in stopped.statuses for stopped in self.hit)
        return sum(stopped.statuses != asked for stopped in self.hit)

    def __str__(self) -> str:
        """A row of the table."""
        trial, slowest = self.trial, max((stopped.seconds for stopped in self.hit), default=0.0)
        ranks = f"{trial.ranks} then {trial.others}" if trial.others else str(trial.ranks)
        same = f"{self.apart:.1e} apart (fp64)" if trial.others else "bit-identical"
        return (
            f"| {trial.stage} | {ranks} | {trial.told} | {len(self.hit)} of {trial.stops} "
            f"| {slowest:.1f} | {self.hung} | {same} | {self.seconds:.0f} |"
        )


HEADER = """| stage | ranks | signal | stopped while running | slowest end (s) | hung | weights | took (s) |
|---|---|---|---|---|---|---|---|"""
KILLS = [Trial("ae", 2, 20), Trial("text", 2, 20), Trial("ae", 4, 8), Trial("text", 4, 8)]
ASKED = [Trial(stage, 2, 20, told="SIGTERM") for stage in ("ae", "text")]
# stage 1 over 40 steps: undisturbed, 1 and 2 ranks are 6e-12 apart after 40 and 2e-6 after 70, as games go
ELASTIC = [
    one
    for others in (1, 4)
    for one in (Trial("ae", 2, 2, others, steps_a_stop=20), Trial("text", 2, 4, others))
]


def main() -> None:
    """All of them, or a few stops of each; one row a trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=0, help="of each trial; 0 is as many as are asked for")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(HEADER, flush=True)
    (ROOT / "runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder:
        for one in KILLS + ASKED + ELASTIC:
            stops = asked.stops or one.stops
            few = Trial(one.stage, one.ranks, stops, one.others, one.told, one.steps_a_stop)
            print(few.run(Path(folder), asked.seed), flush=True)


if __name__ == "__main__":
    main()
