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

from ldm import keyed
from ldm.data.batches import ATTEMPTS, Derived, Reader, Row, Served, Steps, collate, read_sample
from ldm.data.captions import Captions
from ldm.data.loader import Loader
from ldm.data.module import ShardDataModule
from ldm.data.reader import BadSample, Sample, find_shards
from ldm.data.transforms import Pictures
from ldm.errors import UserError


class Resampled(Steps):
    """One rank's batches; position = step * B + place in the batch, the key of crops and noise.

    Every rank, worker and first step draws other shards, by seeds of its own.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        readers: Sequence[Reader],
        global_batch: int,
        steps: int,
        seed: int,
        buffer: int,
        rank: int = 0,
        world: int = 1,
        derived: Sequence[Derived] = (),
    ) -> None:
        super().__init__(global_batch, steps, rank, world)
        self.urls, self.readers, self.seed, self.buffer = urls, readers, seed, buffer
        self.derived = derived

    def __iter__(self) -> Iterator[Served | UserError]:
        turns = self.turns()
        samples = iter(self._samples(turns.start))
        for step in turns:
            found, bad = list[Row](), list[str]()
            while len(found) < self.local_batch:
                position = self.first_position(step) + len(found)
                try:
                    raw = next(samples)
                    sample = Sample(Path(raw["__url__"]), raw["__key__"], _members(raw))
                    found.append(read_sample(sample, position, self.readers, self.derived))
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
        seed = keyed.generator(self.seed, first_step, f"resampled/{self.rank}").initial_seed()
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
        extras: Sequence[Reader] = (),
        aligned: Sequence[Callable[[Pictures], Reader]] = (),
        derived: Sequence[Derived] = (),
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
            extras=extras,
            aligned=aligned,
            derived=derived,
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

    def train_dataloader(self) -> Loader:
        """Batches of the whole run; a resumed one counts on, with other samples."""
        pin = torch.cuda.is_available()
        loader = Loader(self._resampled(), self.seed, "resampled", self.num_workers, pin, self.max_bad_rate)
        loader.skip_to(self.first_step)
        return loader

    def _resampled(self) -> Resampled:
        pictures = Pictures(self.size, self.seed, self.random_crop, self.flip, channels=self.channels)
        readers: list[Reader] = [
            pictures,
            Captions(self.captions or {"txt": 1.0}, self.seed),
            *self.extras,
            *(make(pictures) for make in self.aligned),
        ]
        urls = self.shards
        if isinstance(urls, str) and Path(urls).is_dir():
            urls = [str(path) for path in find_shards(urls)]
        return Resampled(
            urls,
            readers,
            self.global_batch_size,
            self.steps,
            self.seed,
            self.buffer,
            *self._rank_and_world(),
            self.derived,
        )
