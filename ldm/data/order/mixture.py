"""Orders composed of orders: sources mixed by weight, batches of one bucket, selected rows of each shard."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from ldm.data.order.filters import RowSelection
from ldm.data.order.shuffle import SampleOrder, ShuffledOrder, philox
from ldm.data.shards.reader import BadSample, Sample, Shard, Shards
from ldm.errors import InvalidValue


class ProportionalSchedule:
    """Assigns the numbers 0, 1, 2, ... to parts in proportion to `shares`: a pure function of the number.

    With d = `divisor`, round e gives part s floor((e + 1) a_s / d) - floor(e a_s / d) numbers, in an order
    keyed by (seed, e). So after e rounds part s has had floor(e a_s / d) numbers: less than one too few, no
    matter how small its share.
    """

    def __init__(self, shares: Sequence[int], divisor: int, seed: int) -> None:
        if min(shares) < 0 or not sum(shares) or divisor < 1:
            raise InvalidValue(
                "shares must be >= 0, at least one of them above 0, and divisor >= 1, "
                f"not {list(shares)} and {divisor}"
            )
        self.shares, self.divisor, self.seed = [int(share) for share in shares], divisor, seed
        self._round = lru_cache(2)(self._shuffle_round)

    def __getstate__(self) -> dict[str, object]:
        return {"shares": self.shares, "divisor": self.divisor, "seed": self.seed}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)

    def locate(self, first: int, n: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Return (part, how many numbers the part had before) for first, ..., first + n - 1."""
        parts, before = [], []
        while n > 0:
            e = first * self.divisor // sum(self.shares)
            while self._round_start(e + 1) <= first:
                e += 1
            while self._round_start(e) > first:
                e -= 1
            start = self._round_start(e)
            round_parts, counts = self._round(e)
            parts.append(round_parts[first - start : first - start + n])
            before.append(counts[first - start : first - start + n])
            first, n = first + len(parts[-1]), n - len(parts[-1])
        return np.concatenate(parts), np.concatenate(before)

    def _round_start(self, e: int) -> int:
        return sum(e * share // self.divisor for share in self.shares)

    def _shuffle_round(self, e: int) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        before = [e * share // self.divisor for share in self.shares]
        after = [(e + 1) * share // self.divisor for share in self.shares]
        sizes = np.array(after) - np.array(before)
        parts = np.repeat(np.arange(len(sizes)), sizes)
        parts = parts[philox(self.seed ^ 0x51ED2701, e).permutation(len(parts))]
        counts = np.zeros(len(parts), np.int64)
        for part, start in enumerate(before):
            counts[parts == part] = start + np.arange(sizes[part])
        return parts, counts


class MixtureOrder:
    """Sources mixed by weight, each in its own endless order.

    A `ProportionalSchedule` maps a position to (source, position in the source's order).

    Args:
        orders: one per source.
        first_shards: the number of each source's first shard among all shards.
        weights: how often a source is read, whatever its size.
    """

    ROUND, DIVISOR = 4096, 1 << 20

    def __init__(
        self,
        orders: Sequence[SampleOrder],
        first_shards: Sequence[int],
        weights: Sequence[float],
        seed: int,
    ) -> None:
        if not len(orders) == len(first_shards) == len(weights) or min(weights) <= 0:
            raise InvalidValue(f"{len(orders)} sources need as many weights above 0, not {list(weights)}")
        self.orders, self.first_shards = orders, first_shards
        self.samples = sum(order.samples for order in orders)
        shares = [max(1, round(weight / sum(weights) * self.ROUND * self.DIVISOR)) for weight in weights]
        self.schedule = ProportionalSchedule(shares, self.DIVISOR, seed)

    def locate(self, position: int, n: int) -> Int64[np.ndarray, "n 2"]:
        """Return (shard, row) of the n samples from `position` on."""
        sources, source_positions = self.schedule.locate(position, n)
        samples = np.zeros((n, 2), np.int64)
        for source in np.unique(sources).tolist():
            mask = sources == source  # its positions in its own order are consecutive
            first = int(source_positions[mask][0])
            located = self.orders[source].locate(first, int(mask.sum()))
            samples[mask] = located + [self.first_shards[source], 0]
        return samples

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """Return a nearby sample of the same source."""
        source, source_position = (int(part[0]) for part in self.schedule.locate(position, 1))
        shard, row = self.orders[source].replacement(source_position, attempt)
        return self.first_shards[source] + shard, row

    def bucket(self, position: int) -> int:
        """Return 0, the only bucket."""
        return 0


class BucketOrder:
    """One bucket per global batch, in proportion to `shares`; each bucket has its own endless order.

    Args:
        shares: of each bucket in all samples read: its number of samples, if all are read equally often.
    """

    def __init__(
        self, orders: Sequence[SampleOrder], shares: Sequence[int], global_batch_size: int, seed: int
    ) -> None:
        self.orders, self.global_batch_size = orders, global_batch_size
        self.samples = sum(order.samples for order in orders)
        self.schedule = ProportionalSchedule(shares, global_batch_size, seed)

    def locate(self, position: int, n: int) -> Int64[np.ndarray, "m 2"]:
        """Return (shard, row) of n samples of one global batch."""
        bucket, bucket_position = self._bucket_position(position)
        assert position % self.global_batch_size + n <= self.global_batch_size, "not of one batch"
        return self.orders[bucket].locate(bucket_position, n)

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """Return a nearby sample of the same bucket."""
        bucket, bucket_position = self._bucket_position(position)
        return self.orders[bucket].replacement(bucket_position, attempt)

    def bucket(self, position: int) -> int:
        """Return the bucket of the position's batch."""
        return self._bucket_position(position)[0]

    def _bucket_position(self, position: int) -> tuple[int, int]:
        """Return (bucket, position in the bucket's order)."""
        step, row = divmod(position, self.global_batch_size)
        bucket, batches = self.schedule.locate(step, 1)
        return int(bucket[0]), int(batches[0]) * self.global_batch_size + row


class FilteredOrder:
    """An order of only those rows of each shard that a `RowSelection` puts into one bucket."""

    def __init__(self, order: ShuffledOrder, selection: RowSelection, bucket: int) -> None:
        self.order, self.selection, self.selected_bucket = order, selection, bucket
        self.samples = order.samples

    def locate(self, position: int, n: int) -> Int64[np.ndarray, "m 2"]:
        """Return (shard, row) of the n samples from `position` on."""
        indices = self.order.locate(position, n)
        return np.array([self._row(shard, index) for shard, index in indices.tolist()]).reshape(-1, 2)

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """Return another sample of the position's window."""
        return self._row(*self.order.replacement(position, attempt))

    def bucket(self, position: int) -> int:
        """Return 0, the only bucket."""
        return 0

    def _row(self, shard: int, index: int) -> tuple[int, int]:
        """Return (shard, row) of a shard's selected row of this index."""
        return shard, int(self.selection.rows(shard, self.selected_bucket)[index])


class SourceShards:
    """The shards of several sources, numbered consecutively."""

    def __init__(self, parts: Sequence[Shards]) -> None:
        self.parts = parts
        self.first_shards = np.cumsum([0, *map(len, parts)])[:-1].tolist()

    def __getitem__(self, number: int) -> Shard:
        part = bisect_right(self.first_shards, number) - 1
        return self.parts[part][number - self.first_shards[part]]

    def has_captions(self) -> bool:
        """Return whether a manifest lists a sample with a `.txt`, or the index of a shard without one."""
        for part in self.parts:
            if part.manifest_rows is not None:
                if part.manifest_rows["captioned"].any():
                    return True
                continue
            for number in range(len(part)):
                try:
                    if part[number].index.header["captioned"]:
                        return True
                except BadSample:
                    continue
        return False

    def readable_samples(self) -> Iterator[Sample]:
        """Yield the samples in the order of the shards, without those that cannot be read."""
        for number in range(sum(map(len, self.parts))):
            try:
                shard = self[number]
            except BadSample:
                continue
            for row in range(len(shard)):
                with suppress(BadSample):
                    yield shard.sample(row)
