"""Which samples are read and in which bucket, decided from the indexes alone, equal on all ranks."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int16, Int64
from tqdm import tqdm

from ldm.atomic import replacing
from ldm.data.shards.index import NO_CAPTION, Index, index_path, load_index, read_index
from ldm.data.shards.reader import Shards
from ldm.errors import UserError

NOTE = ".plan-"
FACTS = "`python -m ldm.cli.index shards=FOLDER facts=true`"


@dataclass
class Filter:
    """What a sample must be to be read; a bound that is null asks for nothing.

    Args:
        min_size: pixels of the image's short side.
        max_aspect: of the long side to the short one.
        min_caption: bytes of the caption; 1 leaves out images without one.
        min_score: of the number that was indexed as the sample's score.
    """

    min_size: int | None = None
    max_aspect: float | None = None
    min_caption: int | None = None
    min_score: float | None = None

    def __call__(self, rows: np.ndarray) -> Bool[np.ndarray, " n"]:
        """Which rows of an index are read."""
        kept = np.ones(len(rows), bool)
        sides = np.stack([rows["width"], rows["height"]]).astype(np.float64)
        if self.min_size is not None:
            kept &= sides.min(0) >= self.min_size
        if self.max_aspect is not None:
            kept &= (sides.min(0) > 0) & (sides.max(0) <= self.max_aspect * sides.min(0))
        if self.min_caption is not None:
            kept &= (rows["caption"] != NO_CAPTION) & (rows["caption"] >= self.min_caption)
        if self.min_score is not None:
            kept &= rows["score"] >= np.float16(self.min_score)  # unknown is nan, and left out
        return kept

    @property
    def needs_facts(self) -> bool:
        """Whether it asks for what only an index with facts knows."""
        return any(bound is not None for bound in (self.min_size, self.max_aspect, self.min_score))


@dataclass
class AspectBuckets:
    """The shapes that batches come in; a image goes to the nearest aspect it fills without being enlarged.

    Of several shapes of about one aspect the largest that the image fills is taken: resolutions mix, too. A
    image smaller than all of them goes to the smallest of the nearest aspect.

    Args:
        shapes: (height, width) of each bucket.
    """

    shapes: Sequence[Sequence[int]]

    ALIKE = 1.05
    """Aspects within this factor of the nearest count as it."""

    def __call__(self, rows: np.ndarray) -> Int64[np.ndarray, " n"]:
        """The bucket of each row of an index."""
        shapes = np.array(self.shapes, np.float64)
        width, height = (rows[name].astype(np.float64)[:, None] for name in ("width", "height"))
        off = np.abs(np.log(np.maximum(width, 1) / np.maximum(height, 1) * shapes[:, 0] / shapes[:, 1]))
        alike = off <= off.min(1, keepdims=True) + np.log(self.ALIKE)
        fills = (width >= shapes[:, 1]) & (height >= shapes[:, 0])
        area = np.where(fills, shapes.prod(1), -shapes.prod(1))  # the largest filled, else the smallest
        return np.where(alike, area, -np.inf).argmax(1)


class RowSelection:
    """The rows of each shard by bucket: counts at once, the rows themselves as they are asked for.

    Args:
        keep: which samples are read.
        buckets: where each of them goes; without, there is one bucket.
    """

    HELD = 1024

    def __init__(self, shards: Shards, filter: Filter, buckets: AspectBuckets | None = None) -> None:
        self.shards, self.filter, self.buckets = shards, filter, buckets
        self._rows: OrderedDict[tuple[int, int], Int64[np.ndarray, " m"]] = OrderedDict()
        self.counts = self._counted()

    def rows(self, shard: int, bucket: int) -> Int64[np.ndarray, " m"]:
        """The rows of a shard that lie in a bucket."""
        if (shard, bucket) not in self._rows:
            self._rows[shard, bucket] = np.flatnonzero(self._assigned(shard) == bucket)
            if len(self._rows) > self.HELD:
                self._rows.popitem(last=False)
        self._rows.move_to_end((shard, bucket))
        return self._rows[shard, bucket]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": OrderedDict()}

    def _assigned(self, shard: int) -> Int16[np.ndarray, " n"]:
        """The bucket of each row, -1 where it is not read."""
        if not self.shards.counts[shard]:
            return np.zeros(0, np.int16)
        index = self._index(shard)
        if (self.filter.needs_facts or self.buckets) and not index.head["facts"]:
            raise UserError(
                f"the index of {self.shards.paths[shard]} does not know the sizes of its images: "
                f"read them with {FACTS}"
            )
        kept = self.filter(index.rows)
        if self.buckets is None:
            return np.where(kept, 0, -1).astype(np.int16)
        known = (index.rows["width"] > 0) & (index.rows["height"] > 0)
        return np.where(kept & known, self.buckets(index.rows), -1).astype(np.int16)

    def _index(self, shard: int) -> Index:
        path, folder = self.shards.paths[shard], self.shards.index_folder
        if self.shards.fetch is None:
            return load_index(path, folder)
        index = read_index(index_path(path, folder))
        if index is None:
            raise UserError(
                "filters and buckets of remote shards need the indexes of all of them on this machine: copy "
                "them into a folder and give it as data.index=FOLDER"
            )
        return index

    def _counted(self) -> Int64[np.ndarray, "s k"]:
        """Samples of each shard and bucket; noted beside the shards, where the folder allows."""
        kinds = 1 if self.buckets is None else len(self.buckets.shapes)
        note = self._note()
        if note is not None and note.is_file():
            return np.load(note)
        counts = np.zeros((len(self.shards), kinds), np.int64)
        for shard in tqdm(range(len(self.shards)), "planning from shard indexes", delay=2):
            assigned = self._assigned(shard)
            counts[shard] = np.bincount(assigned[assigned >= 0], minlength=kinds)
        if not counts.sum():
            raise UserError(f"no sample of {self.shards.paths[0].parent} passes {self.filter}: ask for less")
        if note is not None:
            try:
                with replacing(note) as temporary, open(temporary, "wb") as file:
                    np.save(file, counts)
            except OSError:
                pass  # a read-only folder
        return counts

    def _note(self) -> Path | None:
        """Where the counts are noted; the shards' hashes are in its name, so it needs a manifest."""
        if self.shards.noted is None:
            return None
        text = f"{self.shards.manifest} {self.filter} {self.buckets}".encode()
        digest = blake2b(text + self.shards.noted["hash"].tobytes(), digest_size=8).hexdigest()
        return (self.shards.index_folder or Path(self.shards.paths[0]).parent) / f"{NOTE}{digest}.npy"
