"""The order of samples as a pure function of (seed, position)."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64

from ldm import rng
from ldm.errors import InvalidValue


@runtime_checkable
class SampleOrder(Protocol):
    """Maps positions in the stream of samples to (shard, row)."""

    samples: int
    """Number of samples, each read once per epoch."""

    def locate(self, position: int, n: int) -> Int64[np.ndarray, "m 2"]:
        """Return (shard, row) of the samples at position, position + 1, ...; m <= n of them."""
        ...

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """Return (shard, row) of a nearby sample, to replace a bad one."""
        ...

    def bucket(self, position: int) -> int:
        """Return the bucket of the position's batch, which decides with which fields it is read."""
        ...


class ShuffledOrder:
    """An endless shuffled order of samples, each exactly once per epoch: f(seed, position) -> (shard, row).

    Shards are permuted each epoch, then samples inside windows of `window` shards, by counter-based
    generators (Philox) keyed by (seed, epoch) and (seed, epoch, window); only the current window is held.

    With `lanes` > 1 the shards of an epoch are cut into that many ranges, and the j-th part of every global
    batch is read from the j-th range: a rank then reads, and has to fetch, only the shards of its own lanes.
    The order depends on `lanes`, but not on the number of ranks or workers.
    """

    def __init__(
        self,
        counts: Sequence[int] | Int64[np.ndarray, " s"],
        seed: int,
        window: int = 4,
        lanes: int = 1,
        global_batch_size: int = 1,
    ) -> None:
        if window < 1 or lanes < 1 or global_batch_size % lanes:
            raise InvalidValue(
                f"an order needs window >= 1 and a number of lanes that divides the global batch of "
                f"{global_batch_size}, not window {window} and {lanes} lanes"
            )
        self.counts = np.asarray(counts, np.int64)
        self.seed, self.window, self.lanes, self.global_batch_size = seed, window, lanes, global_batch_size
        self.samples = int(self.counts.sum())
        self._epoch = -1
        self._shards = self._ends = np.zeros(0, np.int64)
        self._windows: dict[int, tuple[tuple[int, int], Int64[np.ndarray, "w 2"]]] = {}

    def locate(self, position: int, n: int) -> Int64[np.ndarray, "m 2"]:
        """Return (shard, row) of the n samples from `position` on; position = epoch * samples + index."""
        parts = []
        while n > 0:
            window, index, run = self._window(position)
            parts.append(window[index : index + min(n, run)])
            position, n = position + len(parts[-1]), n - len(parts[-1])
        return np.concatenate(parts)

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """Return another sample of the position's window."""
        window, _, _ = self._window(position)
        shard, row = window[_random_index(self.seed, position, attempt, len(window))].tolist()
        return shard, row

    def bucket(self, position: int) -> int:
        """Return 0, the only bucket."""
        return 0

    def _window(self, position: int) -> tuple[Int64[np.ndarray, "w 2"], int, int]:
        """Return (the position's window, its index there, how many positions from it on stay in its lane)."""
        epoch, index = divmod(position, self.samples)
        self._permute_shards(epoch)
        lane, run = 0, self.samples
        if self.lanes > 1:
            width = self.global_batch_size // self.lanes
            lane, run = position % self.global_batch_size // width, width - position % width
            index = self._lane_count(lane, position) - self._lane_count(lane, epoch * self.samples)
        first, last = self._lane_range(lane, epoch)
        index += first
        first_shard = int(np.searchsorted(self._ends, first, "right")) if first else 0
        shard = int(np.searchsorted(self._ends, index, "right"))
        number = (shard - first_shard) // self.window
        from_shard = first_shard + number * self.window
        to_shard = min(from_shard + self.window, len(self._shards))
        low = max(first, int(self._ends[from_shard - 1]) if from_shard else 0)
        high = min(last, int(self._ends[to_shard - 1]))
        if lane not in self._windows or self._windows[lane][0] != (epoch, number):
            samples = self._list_samples(low, high, from_shard, to_shard)
            key = (epoch << 32) | (lane << 20) | number
            permutation = philox(self.seed ^ 0x9E3779B9, key).permutation(len(samples))
            self._windows[lane] = (epoch, number), samples[permutation]
        return self._windows[lane][1], index - low, run

    def _permute_shards(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._shards = philox(self.seed, epoch).permutation(len(self.counts))
            self._ends = np.cumsum(self.counts[self._shards])
            self._epoch = epoch

    def _lane_count(self, lane: int, position: int) -> int:
        """Return how many positions before this one belong to the lane."""
        return self._lanes_count(lane + 1, position) - self._lanes_count(lane, position)

    def _lanes_count(self, lanes: int, position: int) -> int:
        """Return how many positions before this one belong to the first `lanes` lanes."""
        batches, row = divmod(position, self.global_batch_size)
        width = lanes * self.global_batch_size // self.lanes
        return batches * width + min(row, width)

    def _lane_range(self, lane: int, epoch: int) -> tuple[int, int]:
        """Return the range [first, last) of the epoch's samples, shards permuted, that the lane reads."""
        start, end = epoch * self.samples, (epoch + 1) * self.samples
        first, last = (self._lanes_count(j, end) - self._lanes_count(j, start) for j in (lane, lane + 1))
        return first, last

    def _list_samples(self, low: int, high: int, from_shard: int, to_shard: int) -> Int64[np.ndarray, "w 2"]:
        """Return (shard, row) of the epoch's samples [low, high), unshuffled, from these of its shards."""
        shards = self._shards[from_shard:to_shard]
        counts = self.counts[shards]
        start = int(self._ends[to_shard - 1] - counts.sum())
        rows = np.concatenate([np.arange(count) for count in counts])
        return np.stack([np.repeat(shards, counts), rows], 1)[low - start : high - start]


def philox(*key: int) -> np.random.Generator:
    """Return a counter-based generator for this key of two integers."""
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))


def _random_index(seed: int, position: int, attempt: int, n: int) -> int:
    generator = rng.generator(seed, position, f"substitute/{attempt}")
    return int(torch.randint(n, (), generator=generator))


class SequentialOrder:
    """Samples in the order of the shards, once: for validation and for passes over a whole data set."""

    def __init__(self, counts: Sequence[int] | Int64[np.ndarray, " s"]) -> None:
        self.counts = np.asarray(counts, np.int64)
        self._ends = np.cumsum(self.counts)
        self.samples = int(self.counts.sum())

    def locate(self, position: int, n: int) -> Int64[np.ndarray, "m 2"]:
        """Return (shard, row) of the n samples from `position` on, or of fewer at the end."""
        positions = np.arange(position, min(position + n, self.samples))
        shards = np.searchsorted(self._ends, positions, "right")
        return np.stack([shards, positions - (self._ends - self.counts)[shards]], 1)

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """Return one of the next samples; the first follows the last."""
        shard, row = self.locate((position + 1 + attempt) % self.samples, 1)[0].tolist()
        return shard, row

    def bucket(self, position: int) -> int:
        """Return 0, the only bucket."""
        return 0
