"""WebDataset's stream: shards sampled with replacement, samples shuffled in a buffer; no index, no epochs.

For a first look at shards that are not indexed, and for data so large that no sample comes twice. The costs:
a resumed run continues with other samples, and an epoch's worth of samples misses a third of the shards.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from webdataset import DataPipeline, ResampledShards, shuffle, tarfile_to_samples

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
from ldm.data.shards.reader import BadSample, Sample, find_shards
from ldm.errors import UserError
from ldm.typing import Channels, Pixels, PositiveInt, Proportion, Seed, Workers

MAX_BAD_SAMPLES = 100
"""A run stops after this many bad samples in one batch."""


class ResampledStream(StepDataset):
    """One rank's batches; position = step * B + index in the global batch, the key of crops and noise.

    Each rank, worker and first step has its own seed, and so its own sequence of shards.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        fields: Sequence[Field],
        global_batch_size: int,
        steps: int,
        seed: int,
        buffer: int,
        rank: int = 0,
        world_size: int = 1,
        derived_fields: Sequence[DerivedField] = (),
    ) -> None:
        super().__init__(global_batch_size, steps, rank, world_size)
        self.urls, self.fields, self.seed, self.buffer = urls, fields, seed, buffer
        self.derived_fields = derived_fields

    def __iter__(self) -> Iterator[BatchAndErrors | UserError]:
        steps = self.steps_of_this_worker()
        pipeline = iter(self._pipeline(steps.start))
        for step in steps:
            samples, errors = list[SampleValues](), list[str]()
            while len(samples) < self.local_batch_size:
                position = self.first_position(step) + len(samples)
                try:
                    raw = next(pipeline)
                    sample = Sample(Path(raw["__url__"]), raw["__key__"], _members(raw))
                    samples.append(read_sample(sample, position, self.fields, self.derived_fields))
                except BadSample as error:
                    errors.append(str(error))
                    if len(errors) == MAX_BAD_SAMPLES:
                        yield UserError(f"{MAX_BAD_SAMPLES} bad samples in one batch; the last: {errors[-1]}")
                        return
                except Exception as error:  # tars, URLs and commands raise errors of any type
                    yield UserError(f"{self.urls} cannot be read ({type(error).__name__}: {error})")
                    return
            yield collate(samples, self.fields), errors

    def _pipeline(self, first_step: int) -> DataPipeline:
        seed = rng.generator(self.seed, first_step, f"resampled/{self.rank}").initial_seed()
        urls = ResampledShards(self.urls, seed=seed, worker_seed=_zero, deterministic=True)
        return DataPipeline(urls, tarfile_to_samples(), shuffle(self.buffer, rng=random.Random(seed)))


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
        extra_fields: Sequence[Field] = (),
        spatial_fields: Sequence[Callable[[ImageField], Field]] = (),
        derived_fields: Sequence[DerivedField] = (),
        max_bad_rate: Proportion = 0.01,
        channels: Channels = 3,
    ) -> None:
        super().__init__(
            shards,
            val_shards,
            global_batch_size,
            size,
            steps,
            seed,
            num_workers,
            random_crop,
            flip,
            val_batches,
            extra_fields=extra_fields,
            spatial_fields=spatial_fields,
            derived_fields=derived_fields,
            max_bad_rate=max_bad_rate,
            channels=channels,
        )
        self.buffer = buffer

    def check(self) -> None:
        """Raise UserError if something is missing or inconsistent, before any work starts."""
        self._resampled_stream()
        self._val_stream()

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
        return loader

    def _resampled_stream(self) -> ResampledStream:
        image_field = ImageField(self.size, self.seed, self.random_crop, self.flip, channels=self.channels)
        fields: list[Field] = [
            image_field,
            CaptionField(self.captions or {"txt": 1.0}, self.seed),
            *self.extra_fields,
            *(make(image_field) for make in self.spatial_fields),
        ]
        urls = self.shards
        if isinstance(urls, str) and Path(urls).is_dir():
            urls = [str(path) for path in find_shards(urls)]
        return ResampledStream(
            urls,
            fields,
            self.global_batch_size,
            self.steps,
            self.seed,
            self.buffer,
            *self._rank_and_world_size(),
            self.derived_fields,
        )
