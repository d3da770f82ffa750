"""The order of samples as a pure function of the position."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64

from ldm import rng
from ldm.errors import InvalidValue


@runtime_checkable
class SampleOrder(Protocol):
    """Which sample stands at a position."""

    samples: int
    """How many there are, each once an epoch."""

    def locate(self, position: int, n: int) -> Int64[np.ndarray, "m 2"]:
        """(shard, row) of the samples at position, position + 1, ..., m <= n of them."""
        ...

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """(shard, row) of a sample nearby, for one that is bad."""
        ...

    def bucket(self, position: int) -> int:
        """Which of the stream's lists of readers reads it."""
        ...


class ShuffledOrder:
    """An endless shuffled order of samples, each exactly once an epoch: f(seed, position) -> (shard, row).

    Shards are permuted each epoch, then samples inside windows of `window` shards, by counter-based
    generators (Philox) keyed by (seed, epoch) and (seed, epoch, window); only the current window is held.

    With `lanes` > 1 an epoch is cut into as many stretches of shards, and the j-th part of every global batch
    is read from the j-th stretch: a rank then reads, and has to fetch from afar, its own lanes' shards alone.
    The order depends on `lanes`, and still on neither ranks nor workers.
    """

    def __init__(
        self,
        counts: Sequence[int] | Int64[np.ndarray, " s"],
        seed: int,
        window: int = 4,
        lanes: int = 1,
        global_batch: int = 1,
    ) -> None:
        if window < 1 or lanes < 1 or global_batch % lanes:
            raise InvalidValue(
                f"an order needs window >= 1 and a number of lanes that divides the global batch of "
                f"{global_batch}, not window {window} and {lanes} lanes"
            )
        self.counts = np.asarray(counts, np.int64)
        self.seed, self.window, self.lanes, self.global_batch = seed, window, lanes, global_batch
        self.samples = int(self.counts.sum())
        self._epoch = -1
        self._shards = self._ends = np.zeros(0, np.int64)
        self._windows: dict[int, tuple[tuple[int, int], Int64[np.ndarray, "w 2"]]] = {}

    def locate(self, position: int, n: int) -> Int64[np.ndarray, "m 2"]:
        """(shard, row) of the n samples from `position` on; position = epoch * samples + index."""
        parts = []
        while n > 0:
            places, at, room = self._window(position)
            parts.append(places[at : at + min(n, room)])
            position, n = position + len(parts[-1]), n - len(parts[-1])
        return np.concatenate(parts)

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """Another sample of the position's window."""
        places, _, _ = self._window(position)
        shard, row = places[_draw(self.seed, position, attempt, len(places))].tolist()
        return shard, row

    def bucket(self, position: int) -> int:
        """There is one."""
        return 0

    def _window(self, position: int) -> tuple[Int64[np.ndarray, "w 2"], int, int]:
        """(samples of the position's window, its place among them, how many from it on follow in turn)."""
        epoch, place = divmod(position, self.samples)
        self._draw_epoch(epoch)
        lane, room = 0, self.samples
        if self.lanes > 1:
            width = self.global_batch // self.lanes
            lane, room = position % self.global_batch // width, width - position % width
            begin = epoch * self.samples
            place = self._of(lane, position) - self._of(lane, begin)
        first, last = self._stretch(lane, epoch)
        place += first
        start = int(np.searchsorted(self._ends, first, "right")) if first else 0
        shard = int(np.searchsorted(self._ends, place, "right"))
        number = (shard - start) // self.window
        from_shard = start + number * self.window
        to_shard = min(from_shard + self.window, len(self._shards))
        low = max(first, int(self._ends[from_shard - 1]) if from_shard else 0)
        high = min(last, int(self._ends[to_shard - 1]))
        if lane not in self._windows or self._windows[lane][0] != (epoch, number):
            places = self._between(low, high, from_shard, to_shard)
            key = (epoch << 32) | (lane << 20) | number
            permutation = philox(self.seed ^ 0x9E3779B9, key).permutation(len(places))
            self._windows[lane] = (epoch, number), places[permutation]
        return self._windows[lane][1], place - low, room

    def _draw_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._shards = philox(self.seed, epoch).permutation(len(self.counts))
            self._ends = np.cumsum(self.counts[self._shards])
            self._epoch = epoch

    def _of(self, lane: int, position: int) -> int:
        """How many positions before this one belong to the lane."""
        return self._below(lane + 1, position) - self._below(lane, position)

    def _below(self, lane: int, position: int) -> int:
        """How many positions before this one belong to the first so many lanes."""
        batches, row = divmod(position, self.global_batch)
        width = lane * self.global_batch // self.lanes
        return batches * width + min(row, width)

    def _stretch(self, lane: int, epoch: int) -> tuple[int, int]:
        """[first, last) of the epoch's samples, shards in their permuted order, that the lane reads."""
        begin, end = epoch * self.samples, (epoch + 1) * self.samples
        first, last = (self._below(j, end) - self._below(j, begin) for j in (lane, lane + 1))
        return first, last

    def _between(self, low: int, high: int, from_shard: int, to_shard: int) -> Int64[np.ndarray, "w 2"]:
        """(shard, row) of the epoch's samples [low, high), as they lie in these of its shards."""
        shards = self._shards[from_shard:to_shard]
        counts = self.counts[shards]
        begin = int(self._ends[to_shard - 1] - counts.sum())
        rows = np.concatenate([np.arange(count) for count in counts])
        return np.stack([np.repeat(shards, counts), rows], 1)[low - begin : high - begin]


def philox(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))


def _draw(seed: int, position: int, attempt: int, n: int) -> int:
    generator = rng.generator(seed, position, f"substitute/{attempt}")
    return int(torch.randint(n, (), generator=generator))


class SequentialOrder:
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

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """One of the next samples; after the last comes the first."""
        shard, row = self.locate((position + 1 + attempt) % self.samples, 1)[0].tolist()
        return shard, row

    def bucket(self, position: int) -> int:
        """There is one."""
        return 0
