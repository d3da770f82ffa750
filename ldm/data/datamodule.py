"""The training and validation data of a run, as Lightning asks for it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule

from ldm.data.fields.captions import CaptionField
from ldm.data.fields.image import ImageField
from ldm.data.latents import ENCODE, LatentHeader, read_header
from ldm.data.loading.batches import DerivedField, Field, ShardStream
from ldm.data.loading.loader import BatchLoader, ResumableLoader
from ldm.data.order.mixture import SourceShards
from ldm.data.order.options import OrderOptions
from ldm.data.order.shuffle import SequentialOrder
from ldm.data.shards.reader import BadSample, Shards, open_shards
from ldm.data.shards.remote import Cache, is_remote
from ldm.errors import UserError

# Lightning doubts the length of any iterable data set; ours serves each step from one worker
warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")


class ShardDataModule(LightningDataModule):
    """Shards of images, or of latents, as batches of a fixed global size.

    `shards` and `val_shards` are each a folder, a brace pattern, a URL of either, or a list of these;
    `val_shards` None is no validation. Training runs `steps` batches; validation reads the first
    `val_batches` batches of its shards, the same each time.

    Args:
        size: side of a square crop; latents must be of this size, and `order.buckets` goes before it.
        order: the order of samples: window, mixture, filter, buckets.
        captions: weights of where captions stand, as in `CaptionField`; None takes `txt`, where shards have it.
        extras: what else a batch holds of a sample, as its class or cached text states.
        aligned: what it holds that shares the image's crop and flip, each made with the `ImageField` that
            says which: as `ldm.data.fields.spatial`.
        derived: what is made from all these, in order: as `ldm.data.fields.masks`, `ldm.data.fields.degradations`.
        index: folder of the shards' indexes, where they do not lie beside them.
        cache: where remote shards are kept on this machine.
        max_bad_rate: of samples that may be bad before the run is stopped; 0 stops at the first.
        start_method: of worker processes: fork, forkserver or spawn; None is forkserver where there is one.
        channels: of a image, as in `ImageField`.
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
        order: OrderOptions | None = None,
        captions: Mapping[str, float] | None = None,
        extra_fields: Sequence[Field] = (),
        spatial_fields: Sequence[Callable[[ImageField], Field]] = (),
        derived_fields: Sequence[DerivedField] = (),
        index: str | None = None,
        cache: Cache | None = None,
        max_bad_rate: float = 0.01,
        start_method: str | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.shards, self.val_shards = shards, val_shards
        self.global_batch_size, self.steps = global_batch_size, steps
        self.size, self.channels = size, channels
        self.seed = seed
        self.num_workers = num_workers
        self.random_crop = random_crop
        self.flip = flip
        self.val_batches = val_batches
        self.order = order or OrderOptions()
        self.captions = captions
        self.extra_fields, self.spatial_fields, self.derived_fields = (
            list(extra_fields),
            list(spatial_fields),
            list(derived_fields),
        )
        self.index = None if index is None else Path(index).expanduser()
        self.cache = cache
        self.max_bad_rate = max_bad_rate
        self.start_method = start_method
        self.first_step = 0

    def check(self) -> None:
        """UserError for what is missing or does not fit, before any work starts."""
        training, validation = self._train_stream()[0], self._val_stream()
        if not is_remote(self.shards):  # to try one would fetch its shard
            training.read_first()
        if validation is not None and self.val_shards is not None and not is_remote(self.val_shards):
            validation.read_first()

    def check_channels(self, channels: int) -> None:
        """UserError where these are images of other channels than the first stage takes."""
        if channels != self.channels and self.header(self.shards) is None:
            raise UserError(
                f"the first stage takes images of {channels} channels and data.channels={self.channels}: "
                f"give data.channels={channels}, or autoencoder.encoder.in_channels={self.channels} and "
                f"autoencoder.decoder.out_channels={self.channels}"
            )

    def check_latents(self, autoencoder: str) -> None:
        """UserError where the shards hold latents of another autoencoder than the one of this hash."""
        for spec in (self.shards, self.val_shards):
            header = None if spec is None else self.header(spec)
            if header is not None and header.autoencoder != autoencoder:
                raise UserError(
                    f"the latents in {spec} are of autoencoder {header.autoencoder[:12]}, this model's is "
                    f"{autoencoder[:12]}: encode them again with {ENCODE}"
                )

    def header(self, spec: str | Sequence[str]) -> LatentHeader | None:
        """Whose latents these shards hold; None where they hold images."""
        return read_header(*(part.paths for part in self._open(spec).parts))

    def skip_to(self, step: int) -> None:
        """Let training begin with this step's batch."""
        self.first_step = step

    def train_dataloader(self) -> ResumableLoader:
        """Batches of the whole run, resumable."""
        stream, manifest = self._train_stream()
        loader = ResumableLoader(
            stream,
            self.seed,
            manifest,
            self.num_workers,
            torch.cuda.is_available(),
            self.max_bad_rate,
            self.start_method,
        )
        loader.skip_to(self.first_step)
        return loader

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The same batches each time, none without `val_shards`."""
        stream = self._val_stream()
        if stream is None:
            return []
        pin = torch.cuda.is_available()
        return BatchLoader(stream, self.num_workers, pin, self.max_bad_rate, self.start_method)

    def _train_stream(self) -> tuple[ShardStream, str]:
        """The stream, and the hash of what its order depends on."""
        sources = self._open(self.shards, apart=self.order.weights is not None)
        order = self.order.build(sources, self.seed, self.global_batch_size)
        buckets = self.order.buckets
        sizes = [self.size] if buckets is None else [(h, w) for h, w in buckets.shapes]
        readers = [self._readers(sources, size, self.random_crop, self.flip) for size in sizes]
        rank, world = self._rank_and_world()
        stream = ShardStream(
            order,
            sources,
            readers,
            self.global_batch_size,
            self.steps,
            rank,
            world,
            derived_fields=self.derived_fields,
        )
        return stream, self.order.identity(sources)

    def _val_stream(self) -> ShardStream | None:
        if self.val_shards is None:
            return None
        sources = self._open(self.val_shards)
        counts = sources.parts[0].counts
        rank, world = self._rank_and_world()
        batch, steps = self._val_plan(int(counts.sum()), world)
        readers = self._readers(sources, self.size, random_crop=False, flip=False)
        return ShardStream(
            SequentialOrder(counts),
            sources,
            [readers],
            batch,
            steps,
            rank,
            world,
            derived_fields=self.derived_fields,
        )

    def _val_plan(self, samples: int, world: int) -> tuple[int, int]:
        """(global batch, batches): whole batches only, all ranks alike; one smaller batch of a small set."""
        if samples >= self.global_batch_size:
            return self.global_batch_size, min(self.val_batches, samples // self.global_batch_size)
        if samples < world:
            raise UserError(f"{self.val_shards} holds {samples} images for {world} processes: add some")
        return samples // world * world, min(self.val_batches, 1)

    def _open(self, spec: str | Sequence[str], apart: bool = False) -> SourceShards:
        """All shards as one source, or each entry as its own."""
        listed = [spec] if isinstance(spec, str) else list(spec)
        return SourceShards([self._opened(one) for one in (listed if apart else [listed])])

    def _opened(self, spec: str | Sequence[str]) -> Shards:
        if not is_remote(spec):
            return open_shards(spec, self.index)
        if self.cache is None:
            raise UserError(
                f"{spec} is not on this machine: name a folder for shards with data.cache.folder=FOLDER"
            )
        return self.cache.open(spec, self.index)

    def _readers(
        self, sources: SourceShards, size: int | tuple[int, int], random_crop: bool, flip: bool
    ) -> list[Field]:
        header = read_header(*(part.paths for part in sources.parts))
        images = ImageField(size, self.seed, random_crop, flip, channels=self.channels)
        if header is None:
            readers: list[Field] = [images]
        else:
            self._check_encoded(header, sources.parts[0].paths[0].parent, images)
            readers = header.readers(self.seed)
        if self.captions is not None or _captioned(sources):
            readers.append(CaptionField(self.captions or {"txt": 1.0}, self.seed))
        return [*readers, *self.extra_fields, *(make(images) for make in self.spatial_fields)]

    def _check_encoded(self, header: LatentHeader, folder: Path, images: ImageField) -> None:
        if header.size != images.size:
            raise UserError(
                f"the latents in {folder} are of {header.size} px images and data.size is "
                f"{images.size}: set data.size={header.size}, or encode again with {ENCODE}"
            )
        if images.random_crop or images.flip:
            raise UserError(
                "latents are neither cropped nor flipped: set data.random_crop and data.flip to false"
            )
        if self.spatial_fields and header.variants > 1:
            raise UserError(
                f"the latents in {folder} are of {header.variants} crops of each image, and data.spatial_fields "
                f"fits the middle one alone: encode again with {ENCODE} crops=0 flip=false"
            )

    def _rank_and_world(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def _captioned(sources: SourceShards) -> bool:
    """Whether any shard notes a caption, or the first one that can be read has one."""
    if all(part.noted is not None for part in sources.parts):
        return any(bool(part.noted["captioned"].any()) for part in sources.parts)  # type: ignore[index]
    for number in range(sum(map(len, sources.parts))):
        try:
            shard = sources[number]
        except BadSample:
            continue
        if len(shard):
            return bool(shard.index.head["captioned"])
    return False
