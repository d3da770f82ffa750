"""WebDataset's own stream: shards drawn with replacement, samples shuffled in a buffer; no index, no epochs.

For a first look at shards that nobody has indexed, and for data so large that no sample comes twice. What
it gives up: a restart goes on with other samples, and an epoch's worth leaves a third of the shards out.
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
    ATTEMPTS,
    BatchAndErrors,
    DerivedField,
    Field,
    Row,
    StepDataset,
    collate,
    read_sample,
)
from ldm.data.loading.loader import ResumableLoader
from ldm.data.shards.reader import BadSample, Sample, find_shards
from ldm.errors import UserError


class ResampledStream(StepDataset):
    """One rank's batches; position = step * B + place in the batch, the key of crops and noise.

    Every rank, worker and first step draws other shards, by seeds of its own.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        readers: Sequence[Field],
        global_batch: int,
        steps: int,
        seed: int,
        buffer: int,
        rank: int = 0,
        world: int = 1,
        derived_fields: Sequence[DerivedField] = (),
    ) -> None:
        super().__init__(global_batch, steps, rank, world)
        self.urls, self.readers, self.seed, self.buffer = urls, readers, seed, buffer
        self.derived_fields = derived_fields

    def __iter__(self) -> Iterator[BatchAndErrors | UserError]:
        steps_of_this_worker = self.steps_of_this_worker()
        samples = iter(self._samples(steps_of_this_worker.start))
        for step in steps_of_this_worker:
            found, bad = list[Row](), list[str]()
            while len(found) < self.local_batch:
                position = self.first_position(step) + len(found)
                try:
                    raw = next(samples)
                    sample = Sample(Path(raw["__url__"]), raw["__key__"], _members(raw))
                    found.append(read_sample(sample, position, self.readers, self.derived_fields))
                except BadSample as error:
                    bad.append(str(error))
                    if len(bad) == ATTEMPTS:
                        yield UserError(f"{bad[-1]}; and so are {ATTEMPTS} samples of one batch")
                        return
                except Exception as error:  # of a tar, a URL or a command: whatever they raise
                    yield UserError(f"{self.urls} cannot be read ({type(error).__name__}: {error})")
                    return
            yield collate(found, self.readers), bad

    def _samples(self, first_step: int) -> DataPipeline:
        seed = rng.generator(self.seed, first_step, f"resampled/{self.rank}").initial_seed()
        urls = ResampledShards(self.urls, seed=seed, worker_seed=_zero, deterministic=True)
        mixed = shuffle(self.buffer, rng=random.Random(seed))
        return DataPipeline(urls, tarfile_to_samples(), mixed)


def _zero() -> int:
    return 0  # the seed above knows rank and worker


def _members(raw: dict[str, Any]) -> dict[str, bytes]:
    return {kind: data for kind, data in raw.items() if not kind.startswith("__")}


class ResampledDataModule(ShardDataModule):
    """Training reads WebDataset's resampled stream of `shards`; validation is as in `ShardDataModule`.

    Args:
        buffer: samples of a worker that are shuffled.
        The others as in `ShardDataModule`.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        val_shards: str | Sequence[str] | None,
        global_batch_size: int,
        size: int,
        steps: int,
        seed: int = 0,
        num_workers: int = 0,
        random_crop: bool = False,
        flip: bool = False,
        val_batches: int = 1,
        buffer: int = 1000,
        extra_fields: Sequence[Field] = (),
        spatial_fields: Sequence[Callable[[ImageField], Field]] = (),
        derived_fields: Sequence[DerivedField] = (),
        max_bad_rate: float = 0.01,
        channels: int = 3,
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
        """UserError for what is missing or does not fit, before any work starts."""
        self._resampled()
        self._val_stream()

    def header(self, spec: str | Sequence[str]) -> None:
        """There are no latents: a stream of whole tars is no way to read what is decoded so quickly."""

    def check_latents(self, autoencoder: str) -> None:
        """There are none."""

    def train_dataloader(self) -> ResumableLoader:
        """Batches of the whole run; a resumed one counts on, with other samples."""
        pin = torch.cuda.is_available()
        loader = ResumableLoader(
            self._resampled(), self.seed, "resampled", self.num_workers, pin, self.max_bad_rate
        )
        loader.skip_to(self.first_step)
        return loader

    def _resampled(self) -> ResampledStream:
        images = ImageField(self.size, self.seed, self.random_crop, self.flip, channels=self.channels)
        readers: list[Field] = [
            images,
            CaptionField(self.captions or {"txt": 1.0}, self.seed),
            *self.extra_fields,
            *(make(images) for make in self.spatial_fields),
        ]
        urls = self.shards
        if isinstance(urls, str) and Path(urls).is_dir():
            urls = [str(path) for path in find_shards(urls)]
        return ResampledStream(
            urls,
            readers,
            self.global_batch_size,
            self.steps,
            self.seed,
            self.buffer,
            *self._rank_and_world(),
            self.derived_fields,
        )
