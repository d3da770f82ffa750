"""One rank's share of the batches of an order of samples."""

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
"""A run stops after this many bad samples in a row."""


@runtime_checkable
class Field(Protocol):
    """Read from a sample what the batch has under `batch_key`; raises BadSample."""

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
    """Compute batch keys from a sample's other values; all randomness is keyed by the position."""

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
                f"{type(derive).__name__} in data.derived_fields needs {error}, but {sample.shard} only "
                f"gives {', '.join(values)}: put the field that provides it first, or use images if these "
                "are latents"
            ) from error
    return position, sample.key, values


def collate(samples: Sequence[SampleValues], fields: Sequence[Field]) -> Batch:
    """Return samples as a batch: tensors stacked, texts as lists; of no samples, an empty list per field."""
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
    """One rank's batches of the steps `start` .. `steps` - 1; a subclass defines what a batch contains.

    Rank and world size are arguments, never detected. Worker w of n serves every n-th step, so that the data
    loader's round robin over workers restores the order of steps.
    """

    def __init__(self, global_batch_size: int, steps: int, rank: int, world_size: int) -> None:
        if global_batch_size % world_size:
            raise UserError(
                f"data.global_batch_size={global_batch_size} does not divide over {world_size} processes: "
                f"make it a multiple of {world_size}, such as {-(-global_batch_size // world_size) * world_size}"
            )
        self.global_batch_size, self.steps, self.rank = global_batch_size, steps, rank
        self.local_batch_size = global_batch_size // world_size
        self.start = 0

    def steps_of_this_worker(self) -> range:
        """Return the steps that this process serves: a worker, or the training process itself."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return range(self.start + first, self.steps, stride)

    def first_position(self, step: int) -> int:
        """Return the position of the rank's first sample in a step."""
        return step * self.global_batch_size + self.rank * self.local_batch_size


class ShardStream(StepDataset):
    """Step s reads positions [s * B, (s + 1) * B) of an order; each rank reads a contiguous part of them.

    Yields UserError instead of raising it: raised in a worker, it would be wrapped in a stack trace.

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
        """Read the rank's first sample; UserError for a mistake that makes every sample fail."""
        position = self.first_position(0)
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
        """Read the sample at (shard, row); None if it is bad and must not be replaced."""
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
