"""Options for the order of samples: shuffling, mixing, filtering, buckets."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from jaxtyping import Int64

from ldm.data.order.filters import AspectBuckets, Filter, RowSelection
from ldm.data.order.mixture import BucketOrder, FilteredOrder, MixtureOrder, SourceShards
from ldm.data.order.shuffle import SampleOrder, ShuffledOrder
from ldm.errors import UserError
from ldm.typing import PositiveFloat, PositiveInt


@dataclass
class OrderOptions:
    """Builds the order of a run's samples; with default options it is a plain `ShuffledOrder`.

    Args:
        window: number of shards whose samples are shuffled together.
        lanes: number of ranges of shards read in parallel, for remote shards; see `ShuffledOrder`.
        weights: how often each item of `shards` is read; None reads all samples equally often.
        filter: which samples are read; None reads all.
        buckets: image shapes, one per batch; None has a single shape.
    """

    window: PositiveInt = 4
    lanes: PositiveInt = 1
    weights: Sequence[PositiveFloat] | None = None
    filter: Filter | None = None
    buckets: AspectBuckets | None = None

    def __post_init__(self) -> None:
        if self.filter == Filter():
            self.filter = None  # it passes every sample

    def build(self, sources: SourceShards, seed: int, global_batch_size: int) -> SampleOrder:
        """Return the order of the sources' samples; UserError if the options are inconsistent."""
        self._check(sources, global_batch_size)
        if self.filter is None and self.buckets is None:
            orders = [self._shuffle(part.counts, seed, global_batch_size) for part in sources.parts]
            return self._mix(orders, sources, self.weights or [1.0], seed)
        selections = [RowSelection(part, self.filter or Filter(), self.buckets) for part in sources.parts]
        counts = [selection.counts.sum(0).tolist() for selection in selections]
        samples = sum(map(sum, counts))
        bucket_orders, shares = list[SampleOrder](), list[int]()
        for bucket in range(len(counts[0])):
            orders = [
                FilteredOrder(self._shuffle(s.counts[:, bucket], seed, global_batch_size), s, bucket)
                for s in selections
            ]
            weights = [
                weight * bucket_counts[bucket] / sum(bucket_counts)
                for weight, bucket_counts in zip(self.weights or [1.0], counts, strict=True)
            ]
            bucket_orders.append(self._mix(orders, sources, weights, seed))
            shares.append(
                counts[0][bucket]
                if self.weights is None
                else round(sum(weights) / sum(self.weights) * samples)
            )
        if self.buckets is None:
            return bucket_orders[0]
        return BucketOrder(bucket_orders, shares, global_batch_size, seed)

    def order_hash(self, sources: SourceShards) -> str:
        """Return a hash of what the order depends on; with default options, that of the shards' manifest."""
        manifests = [part.manifest_hash for part in sources.parts]
        if self == OrderOptions():
            return manifests[0]
        return blake2b(f"{manifests} {self}".encode(), digest_size=16).hexdigest()

    def _check(self, sources: SourceShards, global_batch_size: int) -> None:
        if self.weights is not None and len(self.weights) != len(sources.parts):
            raise UserError(
                f"data.order.weights has {len(self.weights)} numbers for {len(sources.parts)} sources: "
                "give one for each item of data.shards"
            )
        if self.lanes > 1 and self.weights is not None:
            raise UserError(
                f"data.order.lanes={self.lanes} needs a single source, but data.order.weights mixes "
                f"{len(sources.parts)}: set data.order.lanes=1 or data.order.weights=null"
            )
        if self.lanes > 1 and global_batch_size % self.lanes:
            raise UserError(
                f"data.order.lanes={self.lanes} does not divide data.global_batch_size={global_batch_size}: "
                "change one of them"
            )

    def _shuffle(self, counts: Int64[np.ndarray, " s"], seed: int, global_batch_size: int) -> ShuffledOrder:
        return ShuffledOrder(counts, seed, self.window, self.lanes, global_batch_size)

    def _mix(
        self, orders: Sequence[SampleOrder], sources: SourceShards, weights: Sequence[float], seed: int
    ) -> SampleOrder:
        if self.weights is None:
            return orders[0]
        nonempty = [i for i, order in enumerate(orders) if order.samples]
        return MixtureOrder(
            [orders[i] for i in nonempty],
            [sources.first_shards[i] for i in nonempty],
            [weights[i] for i in nonempty],
            seed,
        )
