"""Orders made of orders: sources by weight, one bucket a batch, some rows of each shard."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from ldm.data.order.filters import RowSelection
from ldm.data.order.shuffle import SampleOrder, ShuffledOrder, philox
from ldm.data.shards.reader import Shard, Shards
from ldm.errors import InvalidValue


class ProportionalSchedule:
    """Deals 0, 1, 2, ... to parts in proportion to `shares`: a pure function of the number.

    Round e gives part s floor((e + 1) a_s / d) - floor(e a_s / d) numbers, in an order keyed by (seed, e). So
    after any whole round a part had floor(e a_s / d) of them: never off by one, however small its share.
    """

    def __init__(self, shares: Sequence[int], per: int, seed: int) -> None:
        if min(shares) < 0 or not sum(shares) or per < 1:
            raise InvalidValue(f"shares are >= 0 with one above, and per >= 1, not {list(shares)} and {per}")
        self.shares, self.per, self.seed = [int(share) for share in shares], per, seed
        self._round = lru_cache(2)(self._dealt)

    def __getstate__(self) -> dict[str, object]:
        return {"shares": self.shares, "per": self.per, "seed": self.seed}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def locate(self, first: int, n: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """(part, how many the part had before) of the numbers first, ..., first + n - 1."""
        parts, before = [], []
        while n > 0:
            e = first * self.per // sum(self.shares)
            while self._start(e + 1) <= first:
                e += 1
            while self._start(e) > first:
                e -= 1
            begin = self._start(e)
            dealt, counts = self._round(e)
            parts.append(dealt[first - begin : first - begin + n])
            before.append(counts[first - begin : first - begin + n])
            first, n = first + len(parts[-1]), n - len(parts[-1])
        return np.concatenate(parts), np.concatenate(before)

    def _start(self, e: int) -> int:
        return sum(e * share // self.per for share in self.shares)

    def _dealt(self, e: int) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        had = [e * share // self.per for share in self.shares]
        now = [(e + 1) * share // self.per for share in self.shares]
        sizes = np.array(now) - np.array(had)
        dealt = np.repeat(np.arange(len(sizes)), sizes)
        dealt = dealt[philox(self.seed ^ 0x51ED2701, e).permutation(len(dealt))]
        counts = np.zeros(len(dealt), np.int64)
        for part, start in enumerate(had):
            counts[dealt == part] = start + np.arange(sizes[part])
        return dealt, counts


class MixtureOrder:
    """Sources by weight, each in its own endless order; position -> (source, its own position) is a `ProportionalSchedule`.

    Args:
        orders: one a source.
        first: the number that each source's first shard has among all.
        weights: how often a source is read, whatever its size.
    """

    ROUND, PER = 4096, 1 << 20

    def __init__(
        self, orders: Sequence[SampleOrder], first: Sequence[int], weights: Sequence[float], seed: int
    ) -> None:
        if not len(orders) == len(first) == len(weights) or min(weights) <= 0:
            raise InvalidValue(f"{len(orders)} sources need as many weights above 0, not {list(weights)}")
        self.orders, self.first = orders, first
        self.samples = sum(order.samples for order in orders)
        shares = [max(1, round(weight / sum(weights) * self.ROUND * self.PER)) for weight in weights]
        self.deal = ProportionalSchedule(shares, self.PER, seed)

    def locate(self, position: int, n: int) -> Int64[np.ndarray, "n 2"]:
        """(shard, row) of the n samples from `position` on."""
        sources, own = self.deal.locate(position, n)
        places = np.zeros((n, 2), np.int64)
        for source in np.unique(sources).tolist():
            mine = sources == source  # their own positions follow one another
            found = self.orders[source].locate(int(own[mine][0]), int(mine.sum()))
            places[mine] = found + [self.first[source], 0]
        return places

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """A sample near it in the same source."""
        source, own = (int(part[0]) for part in self.deal.locate(position, 1))
        shard, row = self.orders[source].replacement(own, attempt)
        return self.first[source] + shard, row

    def bucket(self, position: int) -> int:
        """There is one."""
        return 0


class BucketOrder:
    """One bucket a global batch, each as often as its share asks for; within it, its own endless order.

    Args:
        shares: of each bucket in what is read, its samples where all are read alike.
    """

    def __init__(
        self, orders: Sequence[SampleOrder], shares: Sequence[int], global_batch: int, seed: int
    ) -> None:
        self.orders, self.global_batch = orders, global_batch
        self.samples = sum(order.samples for order in orders)
        self.deal = ProportionalSchedule(shares, global_batch, seed)

    def locate(self, position: int, n: int) -> Int64[np.ndarray, "m 2"]:
        """(shard, row) of n samples of one global batch."""
        bucket, own = self._own(position)
        assert position % self.global_batch + n <= self.global_batch, "not of one batch"
        return self.orders[bucket].locate(own, n)

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """A sample near it in the same bucket."""
        bucket, own = self._own(position)
        return self.orders[bucket].replacement(own, attempt)

    def bucket(self, position: int) -> int:
        """The bucket of the position's batch."""
        return self._own(position)[0]

    def _own(self, position: int) -> tuple[int, int]:
        step, row = divmod(position, self.global_batch)
        bucket, batches = self.deal.locate(step, 1)
        return int(bucket[0]), int(batches[0]) * self.global_batch + row


class FilteredOrder:
    """An order over the rows of each shard that a plan puts into one bucket."""

    def __init__(self, order: ShuffledOrder, plan: RowSelection, bucket: int) -> None:
        self.order, self.plan, self.number = order, plan, bucket
        self.samples = order.samples

    def locate(self, position: int, n: int) -> Int64[np.ndarray, "m 2"]:
        """(shard, row) of the n samples from `position` on."""
        places = self.order.locate(position, n)
        return np.array([self._row(shard, place) for shard, place in places.tolist()]).reshape(-1, 2)

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """Another sample of the position's window."""
        return self._row(*self.order.replacement(position, attempt))

    def bucket(self, position: int) -> int:
        """There is one."""
        return 0

    def _row(self, shard: int, place: int) -> tuple[int, int]:
        return shard, int(self.plan.rows(shard, self.number)[place])


class SourceShards:
    """The shards of several sources, numbered through."""

    def __init__(self, parts: Sequence[Shards]) -> None:
        self.parts = parts
        self.first = np.cumsum([0, *map(len, parts)])[:-1].tolist()

    def __getitem__(self, number: int) -> Shard:
        part = bisect_right(self.first, number) - 1
        return self.parts[part][number - self.first[part]]
