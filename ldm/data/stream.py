"""The order of samples as a pure function, and the loader whose whole state is one integer."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ldm.data.reader import Shard, Shards
from ldm.errors import UserError
from ldm.typing import Batch


@runtime_checkable
class Places(Protocol):
    """Which sample stands at a position."""

    def locate(self, position: int, n: int) -> Int64[np.ndarray, "m 2"]:
        """(shard, row) of the samples at position, position + 1, ..., m <= n of them."""
        ...


@runtime_checkable
class Reader(Protocol):
    """Reads the tensor of a sample that a batch holds under the name `field`."""

    field: str

    def __call__(self, shard: Shard, row: int, position: int) -> Tensor: ...


class Order:
    """An endless shuffled order of samples, each exactly once an epoch: f(seed, position) -> (shard, row).

    Shards are permuted each epoch, then samples inside windows of `window` shards, by counter-based
    generators (Philox) keyed by (seed, epoch) and (seed, epoch, window); only the current window is held.
    """

    def __init__(self, counts: Sequence[int] | Int64[np.ndarray, " s"], seed: int, window: int = 4) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.seed = seed
        self.window = window
        self.samples = int(self.counts.sum())
        self._epoch = self._drawn = -1
        self._shards = self._ends = np.zeros(0, np.int64)
        self._places = np.zeros((0, 2), np.int64)

    def locate(self, position: int, n: int) -> Int64[np.ndarray, "m 2"]:
        """(shard, row) of the n samples from `position` on; position = epoch * samples + index."""
        parts = []
        while n > 0:
            epoch, place = divmod(position, self.samples)
            self._draw_epoch(epoch)
            window = int(np.searchsorted(self._ends, place, "right"))
            self._draw_window(window)
            first = place - (int(self._ends[window - 1]) if window else 0)
            parts.append(self._places[first : first + n])
            position, n = position + len(parts[-1]), n - len(parts[-1])
        return np.concatenate(parts)

    def _draw_epoch(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        self._shards = _philox(self.seed, epoch).permutation(len(self.counts))
        ends = np.cumsum(self.counts[self._shards])
        self._ends = np.append(ends[self.window - 1 : -1 : self.window], ends[-1])  # of windows
        self._epoch, self._drawn = epoch, -1

    def _draw_window(self, window: int) -> None:
        if window == self._drawn:
            return
        shards = self._shards[window * self.window : (window + 1) * self.window]
        rows = [np.arange(self.counts[shard]) for shard in shards]
        places = np.stack([np.repeat(shards, self.counts[shards]), np.concatenate(rows)], 1)
        permutation = _philox(self.seed ^ 0x9E3779B9, (self._epoch << 32) | window).permutation(len(places))
        self._places, self._drawn = places[permutation], window


def _philox(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))


class InOrder:
    """Samples as they lie in the shards, once: for validation and for passes over a whole data set."""

    def __init__(self, counts: Sequence[int] | Int64[np.ndarray, " s"]) -> None:
        self.counts = np.asarray(counts, np.int64)
        self._ends = np.cumsum(self.counts)
        self.samples = int(self.counts.sum())

    def locate(self, position: int, n: int) -> Int64[np.ndarray, "m 2"]:
        """(shard, row) of the samples from `position` on, fewer than n where they end."""
        places = np.arange(position, min(position + n, self.samples))
        shards = np.searchsorted(self._ends, places, "right")
        return np.stack([shards, places - (self._ends - self.counts)[shards]], 1)


class Stream(IterableDataset):
    """One rank's share of every global batch: step b is positions [b * B, (b + 1) * B), cut in ranks' order.

    Rank and world are told, never detected; worker w of n serves every n-th step, so that the data loader's
    round robin over workers restores the order of steps. A user's error is passed on as an item: raised in a
    worker it would come wrapped in a stack trace.
    """

    def __init__(
        self,
        order: Places,
        shards: Shards,
        read: Reader,
        global_batch: int,
        steps: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if global_batch % world:
            raise UserError(
                f"data.global_batch_size={global_batch} does not divide over {world} processes: "
                f"make it a multiple of {world}, {-(-global_batch // world) * world} for one"
            )
        self.order = order
        self.shards = shards
        self.read = read
        self.global_batch = global_batch
        self.steps = steps
        self.rank = rank
        self.local_batch = global_batch // world
        self.start = 0

    def __iter__(self) -> Iterator[Batch | UserError]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self.start + first, self.steps, stride):
            try:
                batch = self.batch(step)
            except UserError as error:
                yield error
                return
            yield batch

    def batch(self, step: int) -> Batch:
        """The rank's samples of one step."""
        position = step * self.global_batch + self.rank * self.local_batch
        places = self.order.locate(position, self.local_batch).tolist()
        positions = range(position, position + len(places))
        opened = [(self.shards[shard], row) for shard, row in places]
        batch: dict[str, Any] = {
            "position": torch.arange(position, position + len(places)),
            "key": [shard.key(row) for shard, row in opened],
            self.read.field: torch.stack(
                [self.read(shard, row, at) for (shard, row), at in zip(opened, positions, strict=True)]
            ),
        }
        if all("txt" in shard.kinds for shard, _ in opened):
            batch["caption"] = [shard.read(row, "txt").decode(errors="replace") for shard, row in opened]
        return batch  # type: ignore[return-value]


class Batches(DataLoader):
    """A stream's batches from its start to its last step; errors of users come out as they went in."""

    def __init__(self, stream: Stream, num_workers: int = 0, pin_memory: bool = False) -> None:
        # a generator of its own: making an iterator must not draw from the global one
        own = torch.Generator()
        super().__init__(stream, None, num_workers=num_workers, pin_memory=pin_memory, generator=own)
        self.stream = stream

    def __len__(self) -> int:
        return self.stream.steps

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def one_pass(shards: Shards, read: Reader, batch_size: int, num_workers: int = 0) -> Batches:
    """Every sample once, as they lie; the last batch holds what is left."""
    steps = -(-int(shards.counts.sum()) // batch_size)
    return Batches(Stream(InOrder(shards.counts), shards, read, batch_size, steps), num_workers)


class Loader(Batches):
    """Batches for training that know how many were handed out: state = {step, seed, global_batch, manifest}.

    The state is the same on every rank and worker. `len` is the number of steps of the whole run, so that
    Lightning does not fetch one batch ahead of the state it saves.
    """

    def __init__(self, stream: Stream, seed: int, num_workers: int = 0, pin_memory: bool = False) -> None:
        super().__init__(stream, num_workers, pin_memory)
        self.seed = seed
        self.step = 0

    def __iter__(self) -> Iterator[Batch]:
        self.stream.start = self.step
        for batch in super().__iter__():
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
        return {
            "seed": self.seed,
            "global_batch": self.stream.global_batch,
            "manifest": self.stream.shards.manifest,
        }
