"""Loaders: a stream's batches in the training process, with one integer as their whole state."""

import logging
import time
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from ldm.data.loading import workers
from ldm.data.loading.batches import BatchAndErrors, Field, ShardStream, StepDataset
from ldm.data.order.shuffle import SequentialOrder
from ldm.data.shards.reader import Shards
from ldm.errors import InvalidValue, UserError
from ldm.typing import Batch

LOG = logging.getLogger(__name__)
VERIFY = "`python -m ldm.cli.verify shards=FOLDER`"
NAMED, EVERY, LEAST = 5, 60.0, 1000


class BadSampleBudget:
    """Counts bad samples, names the first few and then one a minute, and stops a run that has too many.

    `max_rate` of the samples may be bad, taken over at least a thousand; 0 stops at the first.
    """

    def __init__(self, max_rate: float) -> None:
        if not 0 <= max_rate <= 1:
            raise InvalidValue(f"the rate of bad samples lies in [0, 1], not {max_rate}")
        self.max_rate = max_rate
        self.samples = self.bad = 0
        self._logged = 0.0

    def add(self, samples: int, bad: list[str]) -> None:
        """Count a batch; UserError where the rate is passed."""
        self.samples += samples
        for reason in bad:
            self.bad += 1
            if self.bad > self.max_rate * max(self.samples, LEAST):
                allowed = f", of {self.samples:,} read, and data.max_bad_rate={self.max_rate:g} is passed"
                raise UserError(
                    f"{reason}; this is bad sample {self.bad:,}{allowed if self.max_rate else ''}: "
                    f"look at all of them with {VERIFY}"
                )
            if self.bad <= NAMED or time.monotonic() - self._logged > EVERY:
                self._logged = time.monotonic()
                LOG.warning("bad sample %d, another stands for it: %s", self.bad, reason)


class BatchLoader(DataLoader):
    """A stream's batches from its start to its last step; errors of users come out as they went in."""

    def __init__(
        self,
        stream: StepDataset,
        num_workers: int = 0,
        pin_memory: bool = False,
        max_bad_rate: float = 0.01,
        start_method: str | None = None,
    ) -> None:
        # a generator of its own: making an iterator must not draw from the global one
        own, method = torch.Generator(), (start_method or workers.safe_start()) if num_workers else None
        super().__init__(
            stream,
            None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=own,
            multiprocessing_context=method,
            worker_init_fn=workers.begin,
        )
        self.stream, self.start_method = stream, method
        self.tally = BadSampleBudget(max_bad_rate)

    def __len__(self) -> int:
        return self.stream.steps

    def __iter__(self) -> Iterator[Batch]:
        if self.start_method == "forkserver":
            workers.start_server()
        served: BatchAndErrors | UserError
        for served in super().__iter__():
            if isinstance(served, UserError):
                raise served
            batch, bad = served
            self.tally.add(len(batch["position"]), bad)
            yield batch


def sequential_loader(
    shards: Shards, readers: list[Field], batch_size: int, num_workers: int = 0
) -> BatchLoader:
    """Every sample once, as they lie, bad ones left out; the last batch holds what is left."""
    steps = -(-int(shards.counts.sum()) // batch_size)
    stream = ShardStream(SequentialOrder(shards.counts), shards, [readers], batch_size, steps, replace=False)
    return BatchLoader(stream, num_workers, max_bad_rate=1.0)


class ResumableLoader(BatchLoader):
    """Batches for training that know how many were handed out: state = {step, seed, global_batch, manifest}.

    The state is the same on every rank and worker. `len` is the number of steps of the whole run, so that
    Lightning does not fetch one batch ahead of the state it saves.

    Args:
        manifest: what the order of samples depends on, hashed.
    """

    def __init__(
        self,
        stream: StepDataset,
        seed: int,
        manifest: str,
        num_workers: int = 0,
        pin_memory: bool = False,
        max_bad_rate: float = 0.01,
        start_method: str | None = None,
    ) -> None:
        super().__init__(stream, num_workers, pin_memory, max_bad_rate, start_method)
        self.seed = seed
        self.manifest = manifest
        self.step = 0
        self.waited = 0.0
        """Seconds that training has waited for batches."""

    def __iter__(self) -> Iterator[Batch]:
        self.stream.start = self.step
        batches = super().__iter__()
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            self.step += 1
            yield batch

    def skip_to(self, step: int) -> None:
        """Let the next iterator begin with this step."""
        self.step = step

    def state_dict(self) -> dict[str, int | str]:
        """The position in the stream, with what it is a position in."""
        return {"step": self.step, **self._identity()}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on where another loader stopped; UserError where it read another stream."""
        for name, value in self._identity().items():
            if state[name] != value:
                raise UserError(
                    f"the checkpoint read its data with {name} {state[name]} and this run has {value}: "
                    "run with the settings and shards it was begun with, or begin another run"
                )
        self.step = int(state["step"])

    def _identity(self) -> dict[str, int | str]:
        return {"seed": self.seed, "global_batch": self.stream.global_batch, "manifest": self.manifest}
