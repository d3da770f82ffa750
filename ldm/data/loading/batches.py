"""One rank's share of the batches that an order makes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ldm.data.order.shuffle import SampleOrder
from ldm.data.shards.reader import BadSample, Sample, Shard
from ldm.errors import UserError
from ldm.typing import Batch

ATTEMPTS = 100
"""Bad samples in a row, one put in another's place, that end a run."""


@runtime_checkable
class Field(Protocol):
    """Reads from a sample what a batch holds under the name `batch_key`; raises BadSample."""

    @property
    def batch_key(self) -> str: ...

    def __call__(self, sample: Sample, position: int) -> Tensor | str: ...


@runtime_checkable
class ShardSet(Protocol):
    """Shards by number."""

    def __getitem__(self, number: int, /) -> Shard: ...


BatchAndErrors: TypeAlias = tuple[Batch, list[str]]
"""A batch, and what was wrong with the samples that others stand for in it."""


@runtime_checkable
class DerivedField(Protocol):
    """Makes entries of a sample from those that were read; its randomness is keyed by the position."""

    def __call__(self, row: Mapping[str, Any], position: int, /) -> Mapping[str, Tensor]: ...


Row: TypeAlias = tuple[int, str, dict[str, Any]]
"""A sample's position and key, and its entries."""


def read_sample(
    sample: Sample, position: int, readers: Sequence[Field], derived_fields: Sequence[DerivedField] = ()
) -> Row:
    """What the readers find in a sample, then what is derived from that, in order."""
    row: dict[str, Any] = {reader.batch_key: reader(sample, position) for reader in readers}
    for derive in derived_fields:
        try:
            row.update(derive(row, position))
        except KeyError as error:
            raise UserError(
                f"{type(derive).__name__} in data.derived_fields is made from {error} and {sample.shard} gives only "
                f"{', '.join(row)}: name what reads it before, or read shards of images where these hold "
                "latents"
            ) from error
    return position, sample.key, row


def collate(rows: Sequence[Row], readers: Sequence[Field]) -> Batch:
    """Samples as a batch: tensors stacked, texts listed; without a sample, every reader's entry is empty."""
    batch: dict[str, Any] = {
        "position": torch.tensor([position for position, _, _ in rows], dtype=torch.int64),
        "key": [key for _, key, _ in rows],
    }
    for batch_key in rows[0][2] if rows else [reader.batch_key for reader in readers]:
        column = [entries[batch_key] for _, _, entries in rows]
        tensors = bool(column) and isinstance(column[0], Tensor)
        batch[batch_key] = torch.stack(column) if tensors else column
    return batch  # type: ignore[return-value]


class StepDataset(IterableDataset):
    """One rank's batches of steps `start` .. `steps` - 1; what a batch is, a subclass says.

    Rank and world are told, never detected; worker w of n serves every n-th step, so that the data loader's
    round robin over workers restores the order of steps.
    """

    def __init__(self, global_batch: int, steps: int, rank: int, world: int) -> None:
        if global_batch % world:
            raise UserError(
                f"data.global_batch_size={global_batch} does not divide over {world} processes: "
                f"make it a multiple of {world}, {-(-global_batch // world) * world} for one"
            )
        self.global_batch, self.steps, self.rank = global_batch, steps, rank
        self.local_batch = global_batch // world
        self.start = 0

    def steps_of_this_worker(self) -> range:
        """The steps that this process, a worker or the trainer's own, serves."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return range(self.start + first, self.steps, stride)

    def first_position(self, step: int) -> int:
        """Of the rank's samples in a step."""
        return step * self.global_batch + self.rank * self.local_batch


class ShardStream(StepDataset):
    """Step b is positions [b * B, (b + 1) * B) of an order, cut in ranks' order.

    A user's error is passed on as an item: raised in a worker it would come wrapped in a stack trace.

    Args:
        readers: for each bucket of the order, what a batch holds of a sample.
        replace: a bad sample is replaced by one nearby, and keeps its position; without, it is left out.
        derived: what a batch holds beside, made from what was read.
    """

    def __init__(
        self,
        order: SampleOrder,
        shards: ShardSet,
        readers: Sequence[Sequence[Field]],
        global_batch: int,
        steps: int,
        rank: int = 0,
        world: int = 1,
        replace: bool = True,
        derived_fields: Sequence[DerivedField] = (),
    ) -> None:
        super().__init__(global_batch, steps, rank, world)
        self.order, self.shards, self.readers, self.replace = order, shards, readers, replace
        self.derived_fields = derived_fields

    def __iter__(self) -> Iterator[BatchAndErrors | UserError]:
        for step in self.steps_of_this_worker():
            try:
                served = self.batch(step)
            except UserError as error:
                yield error
                return
            yield served

    def read_first(self) -> None:
        """Read the rank's first sample; UserError for what would make each one fail."""
        first = self.first_position(0)
        place = self.order.locate(first, 1).tolist()[0]
        self._read(first, place, self.readers[self.order.bucket(first)], [])

    def batch(self, step: int) -> BatchAndErrors:
        """The rank's samples of one step."""
        first = self.first_position(step)
        readers, bad = self.readers[self.order.bucket(first)], list[str]()
        found = list[Row]()
        for position, place in enumerate(self.order.locate(first, self.local_batch).tolist(), first):
            read = self._read(position, place, readers, bad)
            if read is not None:
                found.append(read)
        return collate(found, readers), bad

    def _read(
        self, position: int, place: Sequence[int], readers: Sequence[Field], bad: list[str]
    ) -> Row | None:
        """A sample's entries; None where it is bad and none may replace it."""
        for attempt in range(ATTEMPTS):
            try:
                shard, row = place
                return read_sample(self.shards[shard].sample(row), position, readers, self.derived_fields)
            except BadSample as error:
                bad.append(str(error))
            if not self.replace:
                return None
            place = self.order.replacement(position, attempt)
        raise UserError(f"{bad[-1]}; and so are {ATTEMPTS} samples in a row")
