"""Stop train.py at random moments and start it again: `python -m tests.support.trials.kill`.

train.py runs once undisturbed, and once stopped (SIGKILL or SIGTERM, to one rank or to all, every third time
while a checkpoint is written) and started again. In the end both have the same weights, averages and
optimizer states, bit for bit, and have read the same samples; if the number of ranks changes in between, the
weights are within 1e-9.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals

from ldm.callbacks.preemption import REQUEUE
from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.write_shards import write_shards
from tests.support.trials.job import ROOT, Job, Stop, differences, read_samples

FLOAT64 = ("trainer.precision=64-true", "callbacks.ema=null", "callbacks.skip_bad_steps=null")
"""A run in float64, without the average, which is fp32 by design."""
TOLERANCE = 1e-9


def command(stage: str, folder: Path, steps: int) -> tuple[str, ...]:
    """Return the arguments of a tiny run on synthetic scenes; train stage 2's first stage if needed."""
    if not (folder / "shards").exists():
        write_shards(DemoScenes("train", 40), folder / "shards", shard_size=16)
    common = (f"data.shards={folder}/shards", "callbacks.images=null", "data.num_workers=1")
    common += (f"trainer.max_steps={steps}", "callbacks.checkpoint.every_n_steps=3")
    if stage == "ae":
        return ("experiment=debug/ae", *common)
    first = Job(command("ae", folder, 6), folder / "first_stage", 1)
    if not (first.run / "autoencoder.safetensors").exists():
        first.finish()
    return ("experiment=debug/text", f"first_stage={first.run}/autoencoder.safetensors", *common)


@dataclass(frozen=True)
class Trial:
    """Stops of one stage on a number of ranks.

    Args:
        other_ranks: number of ranks after half of the stops, with the run in float64; 0 keeps the number.
    """

    stage: str
    ranks: int
    stops: int
    other_ranks: int = 0
    signal_name: str = "SIGKILL"
    steps_per_stop: int = 25

    def run(self, folder: Path, seed: int = 0) -> "Result":
        """Compare the stopped run with an undisturbed one."""
        start, steps, float64 = time.monotonic(), self.steps_per_stop * self.stops, bool(self.other_ranks)
        words = command(self.stage, folder, steps) + (FLOAT64 if float64 else ())
        straight = Job(words, folder / f"{self.stage}{self.ranks}x{steps}{float64}", self.ranks, float64)
        if not (straight.run / f"checkpoints/step{steps:08d}.ckpt").exists():
            straight.finish()
        name = f"{self.stage}{self.ranks}to{self.other_ranks}_{self.signal_name}"
        job = Job(words, folder / name, self.ranks, float64)
        stops = list(self._stop_repeatedly(job, random.Random(seed)))
        job.finish()
        assert read_samples(job.run / "samples") == read_samples(straight.run / "samples")
        ours, theirs = straight.final_state(steps), job.final_state(steps)
        if float64:
            pairs = ((ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())
            error = max(float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel())
        else:
            assert (differing := differences(ours, theirs)) == [], differing
            error = 0.0
        return Result(self, stops, error, time.monotonic() - start)

    def _stop_repeatedly(self, job: Job, rng: random.Random) -> Iterator[Stop]:
        for i in range(self.stops):
            if self.other_ranks and i == self.stops // 2:
                job.ranks = self.other_ranks
            number = Signals[self.signal_name]
            yield job.run_and_stop(rng, number, while_saving=i % 3 == 0, only_one=rng.random() < 0.5)


@dataclass
class Result:
    """The outcome of a trial; `max_error` is the largest difference of a weight, 0 if bit-identical."""

    trial: Trial
    stops: list[Stop]
    max_error: float
    seconds: float

    @property
    def effective(self) -> list[Stop]:
        """The stops that came while the job was running."""
        return [stop for stop in self.stops if stop.was_running]

    @property
    def num_hung(self) -> int:
        """The number of stops after which a rank had to be killed or, after SIGTERM, had a wrong status."""
        expected = [REQUEUE, *[0] * (max(self.trial.ranks, self.trial.other_ranks) - 1)]
        if self.trial.signal_name == "SIGKILL":
            return sum(None in stop.statuses for stop in self.effective)
        return sum(stop.statuses != expected for stop in self.effective)

    def __str__(self) -> str:
        """Return a row of the table."""
        trial, slowest = self.trial, max((stop.seconds for stop in self.effective), default=0.0)
        ranks = f"{trial.ranks} then {trial.other_ranks}" if trial.other_ranks else str(trial.ranks)
        weights = f"within {self.max_error:.1e} (fp64)" if trial.other_ranks else "bit-identical"
        return (
            f"| {trial.stage} | {ranks} | {trial.signal_name} | {len(self.effective)} of {trial.stops} "
            f"| {slowest:.1f} | {self.num_hung} | {weights} | {self.seconds:.0f} |"
        )


HEADER = """| stage | ranks | signal | stopped while running | slowest end (s) | hung | weights | time (s) |
|---|---|---|---|---|---|---|---|"""
KILLS = [Trial("ae", 2, 20), Trial("text", 2, 20), Trial("ae", 4, 8), Trial("text", 4, 8)]
TERMINATIONS = [Trial(stage, 2, 20, signal_name="SIGTERM") for stage in ("ae", "text")]
# 40 steps of stage 1: GAN training amplifies the difference of 1 and 2 ranks, 6e-12 then and 2e-6 after 70
ELASTIC = [
    trial
    for other_ranks in (1, 4)
    for trial in (Trial("ae", 2, 2, other_ranks, steps_per_stop=20), Trial("text", 2, 4, other_ranks))
]


def main() -> None:
    """Run all trials, or a few stops of each; print one row per trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=0, help="per trial; 0 takes each trial's own number")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(HEADER, flush=True)
    (ROOT / "runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder:
        for trial in KILLS + TERMINATIONS + ELASTIC:
            trial = replace(trial, stops=args.stops or trial.stops)
            print(trial.run(Path(folder), args.seed), flush=True)


if __name__ == "__main__":
    main()
