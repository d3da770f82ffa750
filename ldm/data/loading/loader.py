"""Loaders: yield a stream's batches in the training process, with step and position as their whole state."""

import atexit
import logging
import time
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader

from ldm.data.loading import workers
from ldm.data.loading.batches import BatchAndErrors, Field, ShardStream, StepDataset
from ldm.data.order.shuffle import SequentialOrder
from ldm.data.shards.reader import Shards
from ldm.errors import InvalidValue, UserError
from ldm.typing import Batch

LOG = logging.getLogger(__name__)
VERIFY_COMMAND = "`python -m ldm.cli.verify shards=FOLDER`"
CONFIG_KEYS = {
    "seed": ["seed"],
    "global_batch": ["data.global_batch_size"],
    "manifest": ["data.shards", "data.order"],
}
"""Config keys of each name in a loader's state."""
ALWAYS_LOGGED, LOG_INTERVAL, MIN_SAMPLES = 5, 60.0, 1000
_ITERATORS: WeakSet[Any] = WeakSet()
"""Iterators over batches that have workers."""


@atexit.register
def _end_workers() -> None:
    """End the workers that are left when Python exits, such as those of an iterator that an exception holds.

    Registered after multiprocessing's own function and so called before it, which would wait for ever: it
    ends workers by SIGTERM, which they ignore.
    """
    for iterator in [*_ITERATORS]:
        iterator._shutdown_workers()


class BadSampleBudget:
    """Counts bad samples, logs the first five and then one per minute, and raises when there are too many.

    `max_rate` is the largest share of bad samples, of at least a thousand samples; 0 raises at the first.
    """

    def __init__(self, max_rate: float) -> None:
        if not 0 <= max_rate <= 1:
            raise InvalidValue(f"the rate of bad samples must lie in [0, 1], not {max_rate}")
        self.max_rate = max_rate
        self.samples = self.bad = 0
        self._last_logged = 0.0

    def add(self, samples: int, errors: list[str]) -> None:
        """Count a batch; UserError if the rate is exceeded."""
        self.samples += samples
        for error in errors:
            self.bad += 1
            if self.bad > self.max_rate * max(self.samples, MIN_SAMPLES):
                rate = f" of {self.samples:,}, more than data.max_bad_rate={self.max_rate:g} allows"
                raise UserError(
                    f"{error}; this is bad sample #{self.bad:,}{rate if self.max_rate else ''}: "
                    f"list them all with {VERIFY_COMMAND}"
                )
            if self.bad <= ALWAYS_LOGGED or time.monotonic() - self._last_logged > LOG_INTERVAL:
                self._last_logged = time.monotonic()
                LOG.warning("skipped bad sample #%d: %s", self.bad, error)


class BatchLoader(DataLoader):
    """A stream's batches from its start to its last step; raises the UserErrors that the stream yields."""

    def __init__(
        self,
        stream: StepDataset,
        num_workers: int = 0,
        pin_memory: bool = False,
        max_bad_rate: float = 0.01,
        start_method: str | None = None,
    ) -> None:
        method = (start_method or workers.default_start_method()) if num_workers else None
        super().__init__(
            stream,
            None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # so that creating an iterator does not use the global one
            multiprocessing_context=method,
            worker_init_fn=workers.init_worker,
        )
        self.stream, self.start_method = stream, method
        self.budget = BadSampleBudget(max_bad_rate)

    def __len__(self) -> int:
        return self.stream.steps

    def __iter__(self) -> Iterator[Batch]:
        if self.start_method == "forkserver":
            workers.start_fork_server()
        iterator = super().__iter__()
        if self.num_workers:
            _ITERATORS.add(iterator)
        item: BatchAndErrors | UserError
        for item in iterator:
            if isinstance(item, UserError):
                raise item
            batch, errors = item
            self.budget.add(len(batch["position"]), errors)
            yield batch


def sequential_loader(
    shards: Shards, fields: Sequence[Field], batch_size: int, num_workers: int = 0
) -> BatchLoader:
    """Return a loader of every sample once, in the order of the shards, without bad ones.

    The last batch may be smaller.
    """
    steps = -(-int(shards.counts.sum()) // batch_size)
    order = SequentialOrder(shards.counts)
    stream = ShardStream(order, shards, [fields], batch_size, steps, replace_bad=False)
    return BatchLoader(stream, num_workers, max_bad_rate=1.0)


class ResumableLoader(BatchLoader):
    """Training batches; the numbers of batches and samples yielded so far are what a resumed run needs.

    The state {step, position, seed, global_batch, manifest} is the same on every rank and worker. A run may
    continue with another global batch size where `allow_changes` says so: each sample of the epoch is still
    read once. `len` is the number of steps of the whole run, so that Lightning does not fetch one batch ahead
    of the state it saves.

    Args:
        order_hash: hash of what the order of samples depends on; in the state it is `manifest`.
    """

    def __init__(
        self,
        stream: StepDataset,
        seed: int,
        order_hash: str,
        num_workers: int = 0,
        pin_memory: bool = False,
        max_bad_rate: float = 0.01,
        start_method: str | None = None,
    ) -> None:
        super().__init__(stream, num_workers, pin_memory, max_bad_rate, start_method)
        self.seed = seed
        self.order_hash = order_hash
        self.step = self.position = 0
        self.allow_changes: Sequence[str] = ()
        """Config keys, or nodes of them, whose values may differ from those of the state that is loaded."""
        self.waiting_time = 0.0
        """Seconds that training has waited for batches."""

    def __iter__(self) -> Iterator[Batch]:
        self.stream.start_at(self.step, self.position)
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waiting_time += time.perf_counter() - start
            if batch is None:
                return
            self.step += 1
            self.position += self.stream.global_batch_size
            yield batch

    def skip_to(self, step: int) -> None:
        """Let the next iterator start at this step of a run whose global batch size never changes."""
        self.step, self.position = step, step * self.stream.global_batch_size

    def state_dict(self) -> dict[str, int | str]:
        """Return the step, the position of its first sample, and what identifies the stream of samples."""
        return {"step": self.step, "position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue where another loader stopped; UserError if it read another stream of samples."""
        for name, value in self._identity().items():
            if state[name] != value and not self._may_change(name):
                keys = CONFIG_KEYS[name]
                label = keys[0] if len(keys) == 1 else f"hash({', '.join(keys)})"
                raise UserError(
                    f"the checkpoint is from a run with {label}={state[name]}, but this run has "
                    f"{label}={value}: resume with the settings and shards of that run, start a new "
                    f"run=FOLDER, or allow the change with allow_changes=[{keys[0]}]"
                )
        self.step = int(state["step"])
        # Checkpoints without a position are of runs whose global batch size never changed.
        self.position = int(state.get("position", self.step * int(state["global_batch"])))

    def _identity(self) -> dict[str, int | str]:
        return {"seed": self.seed, "global_batch": self.stream.global_batch_size, "manifest": self.order_hash}

    def _may_change(self, name: str) -> bool:
        """Return whether `allow_changes` has one of the name's keys, a key below one, or the node of one."""
        pairs = product(self.allow_changes, CONFIG_KEYS[name])
        return any(f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.") for a, b in pairs)
