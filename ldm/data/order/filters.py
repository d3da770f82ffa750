"""Filters and aspect-ratio buckets, evaluated on the shard indexes alone and so identical on all ranks."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Int16, Int64
from tqdm import tqdm

from ldm.atomic import write_atomically
from ldm.data.shards.index import NO_CAPTION
from ldm.data.shards.manifest import COUNTS_PREFIX
from ldm.data.shards.reader import Shards
from ldm.errors import UserError
from ldm.typing import Length, NonNegativeInt, Pixels, Range

INDEX_METADATA_COMMAND = "`python -m ldm.cli.index shards=FOLDER facts=true`"


@dataclass
class Filter:
    """Bounds on the samples that are read; None disables a bound.

    Args:
        min_size: minimum length of the image's short side, in pixels.
        max_aspect: maximum ratio of the long side to the short side.
        min_caption: minimum length of the caption, in bytes; 1 excludes images without a caption.
        min_score: minimum score, as recorded in the index.
    """

    min_size: NonNegativeInt | None = None
    max_aspect: Annotated[float, Range(1, 1e6)] | None = None
    min_caption: NonNegativeInt | None = None
    min_score: Annotated[float, Range(-65504, 65504)] | None = None

    def __call__(self, rows: np.ndarray) -> Bool[np.ndarray, " n"]:
        """Return which rows of an index pass."""
        keep = np.ones(len(rows), bool)
        sides = np.stack([rows["width"], rows["height"]]).astype(np.float64)
        if self.min_size is not None:
            keep &= sides.min(0) >= self.min_size
        if self.max_aspect is not None:
            keep &= (sides.min(0) > 0) & (sides.max(0) <= self.max_aspect * sides.min(0))
        if self.min_caption is not None:
            keep &= (rows["caption"] != NO_CAPTION) & (rows["caption"] >= self.min_caption)
        if self.min_score is not None:
            keep &= rows["score"] >= np.float16(self.min_score)  # an unknown score is nan and fails
        return keep

    @property
    def needs_metadata(self) -> bool:
        """Whether a bound concerns image sizes or scores, which are indexed only on request."""
        return any(bound is not None for bound in (self.min_size, self.max_aspect, self.min_score))


@dataclass
class AspectBuckets:
    """Image shapes, one per batch; an image goes to the shape of the nearest aspect ratio.

    Of several shapes of nearly the same ratio, it goes to the largest that it covers without being enlarged,
    so resolutions can be mixed, too. An image smaller than all of them goes to the smallest of these shapes.

    Args:
        shapes: (height, width) of each bucket.
    """

    shapes: Sequence[Annotated[Sequence[Pixels], Length(2, 2)]]

    ASPECT_TOLERANCE = 1.05
    """Aspect ratios within this factor of the nearest count as equally near."""

    def __call__(self, rows: np.ndarray) -> Int64[np.ndarray, " n"]:
        """Return the bucket of each row of an index."""
        shapes = np.array(self.shapes, np.float64)
        width, height = (rows[name].astype(np.float64)[:, None] for name in ("width", "height"))
        distance = np.abs(np.log(np.maximum(width, 1) / np.maximum(height, 1) * shapes[:, 0] / shapes[:, 1]))
        is_near = distance <= distance.min(1, keepdims=True) + np.log(self.ASPECT_TOLERANCE)
        is_covered = (width >= shapes[:, 1]) & (height >= shapes[:, 0])
        area = np.where(is_covered, shapes.prod(1), -shapes.prod(1))  # the largest covered, else the smallest
        return np.where(is_near, area, -np.inf).argmax(1)


class RowSelection:
    """The rows of each shard that pass a filter, by bucket: counted on construction, listed on first use.

    Args:
        filter: the bounds on the rows.
        buckets: the shapes to which the rows are assigned; None for a single bucket.
    """

    MAX_CACHED = 1024
    """Number of (shard, bucket) pairs whose rows are kept in memory."""

    def __init__(self, shards: Shards, filter: Filter, buckets: AspectBuckets | None = None) -> None:
        self.shards, self.filter, self.buckets = shards, filter, buckets
        self._rows: OrderedDict[tuple[int, int], Int64[np.ndarray, " m"]] = OrderedDict()
        self.counts = self._load_or_count()

    def rows(self, shard: int, bucket: int) -> Int64[np.ndarray, " m"]:
        """Return the rows of a shard that belong to a bucket."""
        if (shard, bucket) not in self._rows:
            self._rows[shard, bucket] = np.flatnonzero(self._assign_buckets(shard) == bucket)
            if len(self._rows) > self.MAX_CACHED:
                self._rows.popitem(last=False)
        self._rows.move_to_end((shard, bucket))
        return self._rows[shard, bucket]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": OrderedDict()}

    def _assign_buckets(self, shard: int) -> Int16[np.ndarray, " n"]:
        """Return the bucket of each row, -1 for rows that are not read."""
        if not self.shards.counts[shard]:
            return np.zeros(0, np.int16)
        index = self.shards.load_index(shard)
        if (self.filter.needs_metadata or self.buckets) and not index.header["has_metadata"]:
            raise UserError(
                f"data.order.filter or data.order.buckets needs image sizes or scores, but the index of "
                f"{self.shards.paths[shard]} has none: add them with {INDEX_METADATA_COMMAND}"
            )
        keep = self.filter(index.rows)
        if self.buckets is None:
            return np.where(keep, 0, -1).astype(np.int16)
        has_size = (index.rows["width"] > 0) & (index.rows["height"] > 0)
        return np.where(keep & has_size, self.buckets(index.rows), -1).astype(np.int16)

    def _load_or_count(self) -> Int64[np.ndarray, "s k"]:
        """Return the number of samples per shard and bucket; cache it beside the shards if possible."""
        n_buckets = 1 if self.buckets is None else len(self.buckets.shapes)
        cache = self._counts_path()
        if cache is not None and cache.is_file():
            return np.load(cache)
        self.shards.fetch_indexes()
        counts = np.zeros((len(self.shards), n_buckets), np.int64)
        for shard in tqdm(range(len(self.shards)), "filtering shard indexes", delay=2):
            buckets = self._assign_buckets(shard)
            counts[shard] = np.bincount(buckets[buckets >= 0], minlength=n_buckets)
        if not counts.sum():
            raise UserError(self._describe_empty())
        if cache is not None:
            try:
                with write_atomically(cache) as temporary, open(temporary, "wb") as file:
                    np.save(file, counts)
            except OSError:
                pass  # a read-only folder
        return counts

    def _describe_empty(self) -> str:
        """Return the error for a filter that no sample passes."""
        folder = self.shards.paths[0].parent
        indexes = [self.shards.load_index(n) for n in range(len(self.shards)) if self.shards.counts[n]]
        has_score = any((~np.isnan(index.rows["score"])).any() for index in indexes)
        if self.filter.min_score is not None and indexes and not has_score:
            return (
                f"data.order.filter.min_score={self.filter.min_score:g}, but no sample in {folder} has a "
                f"number {indexes[0].score!r} in its json: name its key with `python -m ldm.cli.index "
                f"shards={folder} score=KEY`, or set data.order.filter.min_score=null"
            )
        return f"no sample in {folder} passes {self.filter}: loosen data.order.filter"

    def _counts_path(self) -> Path | None:
        """Return the path of the cached counts, named by the manifest's hashes; None without a manifest."""
        rows = self.shards.manifest_rows
        if rows is None:
            return None
        text = f"{self.shards.manifest_hash} {self.filter} {self.buckets}".encode()
        digest = blake2b(text + rows["hash"].tobytes(), digest_size=8).hexdigest()
        return self.shards.index_folder(0) / f"{COUNTS_PREFIX}{digest}.npy"
