"""WebDataset's stream: shards sampled with replacement, samples shuffled in a buffer; no index, no epochs.

For a first look at shards that are not indexed, and for data so large that no sample comes twice. The costs:
a resumed run continues with other samples, and an epoch's worth of samples misses a third of the shards.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from webdataset import DataPipeline, ResampledShards, shuffle
from webdataset.tariterators import group_by_keys, tar_file_expander

from ldm import rng
from ldm.data.datamodule import ShardDataModule
from ldm.data.fields.captions import CaptionField
from ldm.data.fields.image import ImageField
from ldm.data.loading.batches import (
    BatchAndErrors,
    DerivedField,
    Field,
    SampleValues,
    StepDataset,
    collate,
    read_sample,
)
from ldm.data.loading.loader import ResumableLoader
from ldm.data.shards.local import IndexFolder
from ldm.data.shards.reader import BadSample, Sample, find_shards
from ldm.data.shards.remote import Cache
from ldm.errors import UserError
from ldm.typing import Channels, Pixels, PositiveFloat, PositiveInt, Proportion, Seed, Workers

MAX_BAD_SAMPLES = 100
"""A run stops after this many bad samples in one batch."""


class ResampledStream(StepDataset):
    """One rank's batches; position = step * B + index in the global batch, the key of crops and noise.

    Each rank, worker and first step has its own seed, and so its own sequence of shards. A shard that cannot
    be read, or only in part, counts as one bad sample.

    Args:
        paths: of the shards; of remote ones, where `cache` stores them.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        fields: Sequence[Field],
        global_batch_size: int,
        steps: int,
        seed: int,
        buffer: int,
        rank: int = 0,
        world_size: int = 1,
        derived_fields: Sequence[DerivedField] = (),
        cache: Cache | None = None,
    ) -> None:
        super().__init__(global_batch_size, steps, rank, world_size)
        self.paths, self.fields, self.seed, self.buffer = paths, fields, seed, buffer
        self.derived_fields, self.cache = derived_fields, cache

    def __iter__(self) -> Iterator[BatchAndErrors | UserError]:
        steps = self.steps_of_this_worker()
        errors = list[str]()
        pipeline = iter(self._pipeline(steps.start, errors))
        for step in steps:
            samples = list[SampleValues]()
            while len(samples) < self.local_batch_size:
                position = self.first_position(step) + len(samples)
                try:
                    if (raw := next(pipeline, None)) is not None:
                        sample = Sample(Path(raw["__url__"]), raw["__key__"], _members(raw))
                        samples.append(read_sample(sample, position, self.fields, self.derived_fields))
                except BadSample as error:
                    errors.append(str(error))
                except UserError as error:
                    yield error
                    return
                if len(errors) >= MAX_BAD_SAMPLES:
                    yield UserError(f"{MAX_BAD_SAMPLES} bad samples in one batch; the last: {errors[-1]}")
                    return
            yield collate(samples, self.fields), list(errors)
            errors.clear()

    def _pipeline(self, first_step: int, errors: list[str]) -> DataPipeline:
        """Return an endless stream of samples that appends what is wrong with a shard to `errors`."""
        seed = rng.generator(self.seed, first_step, f"resampled/{self.rank}").initial_seed()
        shards = ResampledShards(list(map(str, self.paths)), seed=seed, worker_seed=_zero, deterministic=True)
        samples = partial(self._read_shards, errors=errors)
        return DataPipeline(shards, samples, shuffle(self.buffer, rng=random.Random(seed)))

    def _read_shards(self, shards: Iterator[dict[str, str]], errors: list[str]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            path = Path(shard["url"])
            try:
                if self.cache is not None:
                    self.cache.remove_outdated(path)
                    self.cache.fetch(path)
                with open(path, "rb") as stream:
                    yield from group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))
            except Exception as error:  # tars raise errors of any type
                kind = "" if isinstance(error, OSError | UserError) else f"{type(error).__name__}: "
                problem = f"the shard {path} cannot be read ({kind}{error})"
                errors.append(problem if self.cache is None else self.cache.name_urls(problem))
                if len(errors) >= MAX_BAD_SAMPLES:
                    return


def _zero() -> int:
    return 0  # the seed already depends on rank and worker


def _members(raw: dict[str, Any]) -> dict[str, bytes]:
    return {kind: data for kind, data in raw.items() if not kind.startswith("__")}


class ResampledDataModule(ShardDataModule):
    """Training reads WebDataset's resampled stream of `shards`; validation is as in `ShardDataModule`.

    Args:
        buffer: number of samples in each worker's shuffle buffer.
        The others are as in `ShardDataModule`.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        val_shards: str | Sequence[str] | None,
        global_batch_size: PositiveInt,
        size: Pixels,
        steps: PositiveInt,
        seed: Seed = 0,
        num_workers: Workers = 0,
        random_crop: bool = False,
        flip: bool = False,
        val_batches: PositiveInt = 1,
        buffer: PositiveInt = 1000,
        captions: Mapping[str, PositiveFloat] | None = None,
        extra_fields: Sequence[Field] = (),
        spatial_fields: Sequence[Callable[[ImageField], Field]] = (),
        derived_fields: Sequence[DerivedField] = (),
        max_bad_rate: Proportion = 0.01,
        channels: Channels = 3,
        val_index: IndexFolder = None,
        cache: Cache | None = None,
    ) -> None:
        batches = (global_batch_size, size, steps, seed, num_workers, random_crop, flip, val_batches)
        super().__init__(
            shards,
            val_shards,
            *batches,
            captions=captions,
            extra_fields=extra_fields,
            spatial_fields=spatial_fields,
            derived_fields=derived_fields,
            max_bad_rate=max_bad_rate,
            channels=channels,
            val_index=val_index,
            cache=cache,
        )
        self.buffer = buffer

    def check(self, fetch: bool = True) -> None:
        """Raise UserError if something is missing or inconsistent, before any work starts."""
        self._resampled_stream()
        self._val_stream()

    def describe(self) -> str:
        """Read a batch; return the number of shards."""
        stream = self._resampled_stream()
        item = next(iter(stream))
        if isinstance(item, UserError):
            raise item
        return f"{len(stream.paths)} shard(s) of {self.shards}"

    def header(self, spec: str | Sequence[str]) -> None:
        """Return None: latents are not supported, since streaming whole tars is too slow for them."""

    def check_latents(self, autoencoder: str) -> None:
        """Do nothing, as there are no latents."""

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of the whole run; a resumed run continues to count steps, with other samples."""
        pin = torch.cuda.is_available()
        loader = ResumableLoader(
            self._resampled_stream(), self.seed, "resampled", self.num_workers, pin, self.max_bad_rate
        )
        loader.skip_to(self.first_step)
        loader.allow_changes = self.allow_changes
        return loader

    def _resampled_stream(self) -> ResampledStream:
        image_field = ImageField(self.size, self.seed, self.random_crop, self.flip, channels=self.channels)
        fields: list[Field] = [
            image_field,
            CaptionField(self.captions or {"txt": 1.0}, self.seed),
            *self.extra_fields,
            *(make(image_field) for make in self.spatial_fields),
        ]
        return ResampledStream(
            find_shards(self.shards, self.cache),
            fields,
            self.global_batch_size,
            self.steps,
            self.seed,
            self.buffer,
            *self._rank_and_world_size(),
            self.derived_fields,
            self.cache,
        )
