"""The batches of one rank, read in an order of samples."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ldm.data.order.shuffle import SampleOrder
from ldm.data.shards.reader import BadSample, Sample, Shard
from ldm.errors import UserError
from ldm.typing import Batch

MAX_BAD_IN_A_ROW = 100
"""Number of consecutive bad samples that ends the run."""


@runtime_checkable
class Field(Protocol):
    """Reads a sample's value of `batch_key`; raises BadSample if it cannot be used."""

    @property
    def batch_key(self) -> str: ...

    def __call__(self, sample: Sample, position: int) -> Tensor | str: ...


@runtime_checkable
class ShardSet(Protocol):
    """Shards by number."""

    def __getitem__(self, number: int, /) -> Shard: ...


BatchAndErrors: TypeAlias = tuple[Batch, list[str]]
"""A batch, and the errors of the bad samples that were replaced in it or left out."""


@runtime_checkable
class DerivedField(Protocol):
    """Computes further batch keys from a sample's values; all randomness is keyed by the position."""

    def __call__(self, values: Mapping[str, Any], position: int, /) -> Mapping[str, Tensor]: ...


SampleValues: TypeAlias = tuple[int, str, dict[str, Any]]
"""A sample's position, its key, and its values by batch key."""


def read_sample(
    sample: Sample, position: int, fields: Sequence[Field], derived_fields: Sequence[DerivedField] = ()
) -> SampleValues:
    """Read the fields of a sample, then compute the derived fields in order."""
    values: dict[str, Any] = {field.batch_key: field(sample, position) for field in fields}
    for derive in derived_fields:
        try:
            values.update(derive(values, position))
        except KeyError as error:
            raise UserError(
                f"{type(derive).__name__} in data.derived_fields needs {error}, but {sample.shard} provides "
                f"only {', '.join(values)}: list the field that provides it first, or use image shards if "
                "these are latents"
            ) from error
    return position, sample.key, values


def collate(samples: Sequence[SampleValues], fields: Sequence[Field]) -> Batch:
    """Return a batch of samples, tensors stacked and texts in lists; without samples, empty lists."""
    batch: dict[str, Any] = {
        "position": torch.tensor([position for position, _, _ in samples], dtype=torch.int64),
        "key": [key for _, key, _ in samples],
    }
    for batch_key in samples[0][2] if samples else [field.batch_key for field in fields]:
        column = [values[batch_key] for _, _, values in samples]
        is_tensor = bool(column) and isinstance(column[0], Tensor)
        batch[batch_key] = torch.stack(column) if is_tensor else column
    return batch  # type: ignore[return-value]


class StepDataset(IterableDataset):
    """One rank's batches for steps `start` to `steps` - 1; a subclass defines what a batch contains.

    Step s has the B positions from `start_position` + (s - `start`) B on. Rank and world size are arguments,
    never detected. Each of n workers loads every n-th step, so that the data loader's round robin over
    workers restores the order of steps.
    """

    def __init__(self, global_batch_size: int, steps: int, rank: int, world_size: int) -> None:
        if global_batch_size % world_size:
            raise UserError(
                f"data.global_batch_size={global_batch_size} is not divisible by {world_size} processes: "
                f"use e.g. data.global_batch_size={-(-global_batch_size // world_size) * world_size}"
            )
        self.global_batch_size, self.steps, self.rank = global_batch_size, steps, rank
        self.local_batch_size = global_batch_size // world_size
        self.start = self.start_position = 0

    def start_at(self, step: int, position: int) -> None:
        """Let the next iterator start at this step, with the sample at this position."""
        self.start, self.start_position = step, position

    def steps_of_this_worker(self) -> range:
        """Return the steps that this process loads: a worker's share, or all in the training process."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return range(self.start + first, self.steps, stride)

    def first_position(self, step: int) -> int:
        """Return the position of the rank's first sample in a step."""
        first = self.start_position + (step - self.start) * self.global_batch_size
        return first + self.rank * self.local_batch_size


class ShardStream(StepDataset):
    """Batches of an order of samples: each step has the next B positions, each rank a contiguous part.

    Yields UserError instead of raising it: the data loader would wrap a worker's error in a stack trace.

    Args:
        bucket_fields: the fields to read, for each bucket of the order.
        replace_bad: replace a bad sample by a nearby one, which keeps its position; False leaves it out.
        derived_fields: computed from the values of the fields.
    """

    def __init__(
        self,
        order: SampleOrder,
        shards: ShardSet,
        bucket_fields: Sequence[Sequence[Field]],
        global_batch_size: int,
        steps: int,
        rank: int = 0,
        world_size: int = 1,
        replace_bad: bool = True,
        derived_fields: Sequence[DerivedField] = (),
    ) -> None:
        super().__init__(global_batch_size, steps, rank, world_size)
        self.order, self.shards = order, shards
        self.bucket_fields, self.derived_fields = bucket_fields, derived_fields
        self.replace_bad = replace_bad

    def __iter__(self) -> Iterator[BatchAndErrors | UserError]:
        for step in self.steps_of_this_worker():
            try:
                batch_and_errors = self.read_batch(step)
            except UserError as error:
                yield error
                return
            yield batch_and_errors

    def read_first_sample(self) -> None:
        """Read the rank's first sample; UserError for a mistake that affects every sample."""
        position = self.first_position(self.start)
        location = self.order.locate(position, 1).tolist()[0]
        self._read(position, location, self.bucket_fields[self.order.bucket(position)], [])

    def read_batch(self, step: int) -> BatchAndErrors:
        """Read the rank's samples of one step."""
        first = self.first_position(step)
        fields, errors = self.bucket_fields[self.order.bucket(first)], list[str]()
        samples = list[SampleValues]()
        for position, location in enumerate(self.order.locate(first, self.local_batch_size).tolist(), first):
            sample = self._read(position, location, fields, errors)
            if sample is not None:
                samples.append(sample)
        return collate(samples, fields), errors

    def _read(
        self, position: int, location: Sequence[int], fields: Sequence[Field], errors: list[str]
    ) -> SampleValues | None:
        """Read the sample at (shard, row), or a replacement if it is bad; None if `replace_bad` is False."""
        for attempt in range(MAX_BAD_IN_A_ROW):
            try:
                shard, row = location
                return read_sample(self.shards[shard].sample(row), position, fields, self.derived_fields)
            except BadSample as error:
                errors.append(str(error))
            if not self.replace_bad:
                return None
            location = self.order.replacement(position, attempt)
        raise UserError(f"{MAX_BAD_IN_A_ROW} bad samples in a row; the last: {errors[-1]}")
