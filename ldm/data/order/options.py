"""How samples follow one another, as a user asks for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from jaxtyping import Int64

from ldm.data.order.filters import AspectBuckets, Filter, RowSelection
from ldm.data.order.mixture import BucketOrder, FilteredOrder, MixtureOrder, SourceShards
from ldm.data.order.shuffle import SampleOrder, ShuffledOrder
from ldm.errors import UserError


@dataclass
class OrderOptions:
    """Makes the order of a run's samples; without any of its options it is a plain `ShuffledOrder`.

    Args:
        window: shards that are shuffled into one another.
        lanes: stretches of shards read side by side, for shards that come from afar; see `ShuffledOrder`.
        weights: how often each entry of the shards is read; None reads all samples alike.
        keep: which samples are read; None reads all.
        buckets: the shapes of batches; None has one.
    """

    window: int = 4
    lanes: int = 1
    weights: Sequence[float] | None = None
    filter: Filter | None = None
    buckets: AspectBuckets | None = None

    def __post_init__(self) -> None:
        if self.filter == Filter():
            self.filter = None  # it asks for nothing

    def build(self, sources: SourceShards, seed: int, global_batch: int) -> SampleOrder:
        """The order of the sources' samples; UserError where the options do not fit them or one another."""
        self._check(sources, global_batch)
        if self.filter is None and self.buckets is None:
            orders = [self._shuffled(part.counts, seed, global_batch) for part in sources.parts]
            return self._mixed(orders, sources, self.weights or [1.0], seed)
        plans = [RowSelection(part, self.filter or Filter(), self.buckets) for part in sources.parts]
        counts = [plan.counts.sum(0).tolist() for plan in plans]
        made, shares = list[SampleOrder](), list[int]()
        for bucket in range(len(counts[0])):
            orders = [
                FilteredOrder(self._shuffled(plan.counts[:, bucket], seed, global_batch), plan, bucket)
                for plan in plans
            ]
            weights = [
                weight * own[bucket] / sum(own)
                for weight, own in zip(self.weights or [1.0], counts, strict=True)
            ]
            made.append(self._mixed(orders, sources, weights, seed))
            samples = sum(map(sum, counts))
            shares.append(
                counts[0][bucket]
                if self.weights is None
                else round(sum(weights) / sum(self.weights) * samples)
            )
        return made[0] if self.buckets is None else BucketOrder(made, shares, global_batch, seed)

    def identity(self, sources: SourceShards) -> str:
        """What a position in the order is a position in: of one plain source, its shards' manifest."""
        manifests = [part.manifest for part in sources.parts]
        if self == OrderOptions():
            return manifests[0]
        return blake2b(f"{manifests} {self}".encode(), digest_size=16).hexdigest()

    def _check(self, sources: SourceShards, global_batch: int) -> None:
        if self.weights is not None and len(self.weights) != len(sources.parts):
            raise UserError(
                f"data.order.weights has {len(self.weights)} numbers for {len(sources.parts)} sources: "
                "give one for each entry of data.shards"
            )
        if self.lanes > 1 and (self.weights is not None or global_batch % self.lanes):
            raise UserError(
                f"data.order.lanes={self.lanes} needs one source and a global batch that it divides, "
                f"not {len(sources.parts)} and {global_batch}: change one of them"
            )

    def _shuffled(self, counts: Int64[np.ndarray, " s"], seed: int, global_batch: int) -> ShuffledOrder:
        return ShuffledOrder(counts, seed, self.window, self.lanes, global_batch)

    def _mixed(
        self, orders: Sequence[SampleOrder], sources: SourceShards, weights: Sequence[float], seed: int
    ) -> SampleOrder:
        if self.weights is None:
            return orders[0]
        some = [i for i, order in enumerate(orders) if order.samples]
        return MixtureOrder(
            [orders[i] for i in some], [sources.first[i] for i in some], [weights[i] for i in some], seed
        )
