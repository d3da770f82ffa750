"""The training and validation data of a run, as a LightningDataModule."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule

from ldm.data.fields.captions import CaptionField
from ldm.data.fields.image import ImageField
from ldm.data.latents import ENCODE_COMMAND, LatentHeader, read_header
from ldm.data.loading.batches import DerivedField, Field, ShardStream
from ldm.data.loading.loader import BatchLoader, ResumableLoader
from ldm.data.order.mixture import SourceShards
from ldm.data.order.options import OrderOptions
from ldm.data.order.shuffle import SequentialOrder
from ldm.data.shards.local import IndexFolder, pair_with_indexes
from ldm.data.shards.reader import open_shards
from ldm.data.shards.remote import Cache
from ldm.data.shards.transfer import is_remote
from ldm.errors import UserError
from ldm.typing import Channels, Pixels, PositiveFloat, PositiveInt, Proportion, Seed, Workers

CAPTIONS_TRIED = 1000
"""The number of samples that are searched for a caption."""

# Lightning warns about the length of any iterable data set; ours serves each step from exactly one worker
warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")


class ShardDataModule(LightningDataModule):
    """Shards of images, or of latents, as batches of a fixed global size.

    `shards` and `val_shards` are each a folder, a brace pattern, a URL of either, or a list of these;
    `val_shards` None disables validation. Training runs `steps` batches; validation reads the first
    `val_batches` batches of its shards, the same each time.

    Args:
        size: height and width of a square crop; it must be that of latents; `order.buckets` overrides it.
        order: the order of samples: window, mixture, filter, buckets.
        captions: weights by caption source, as in `CaptionField`; None reads `txt`, if the shards have it.
        extra_fields: further fields to read, such as the class or cached text embeddings.
        spatial_fields: fields that share the image's crop and flip, each constructed with the `ImageField`,
            as in `ldm.data.fields.spatial`.
        derived_fields: computed from all these, in order, as in `ldm.data.fields.masks`.
        index: folder of the shards' indexes, if they are not beside the shards; of a list, one per item.
        val_index: the same of `val_shards`.
        cache: where remote shards are stored on this machine.
        max_bad_rate: largest share of bad samples before the run stops; 0 stops at the first.
        start_method: of worker processes: fork, forkserver or spawn; None is forkserver where it exists.
        channels: of an image, as in `ImageField`.
    """

    allow_changes: Sequence[str] = ()
    """Config keys in which the run that is resumed may have been different, as in `ResumableLoader`."""

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
        order: OrderOptions | None = None,
        captions: Mapping[str, PositiveFloat] | None = None,
        extra_fields: Sequence[Field] = (),
        spatial_fields: Sequence[Callable[[ImageField], Field]] = (),
        derived_fields: Sequence[DerivedField] = (),
        index: IndexFolder = None,
        val_index: IndexFolder = None,
        cache: Cache | None = None,
        max_bad_rate: Proportion = 0.01,
        start_method: str | None = None,
        channels: Channels = 3,
    ) -> None:
        super().__init__()
        self.shards, self.val_shards = shards, val_shards
        self.global_batch_size, self.steps = global_batch_size, steps
        self.size, self.channels = size, channels
        self.seed, self.num_workers = seed, num_workers
        self.random_crop, self.flip = random_crop, flip
        self.val_batches = val_batches
        self.order = order or OrderOptions()
        self.captions = captions
        self.extra_fields, self.spatial_fields = list(extra_fields), list(spatial_fields)
        self.derived_fields = list(derived_fields)
        self.index, self.val_index = index, val_index
        self.cache = cache
        self.max_bad_rate = max_bad_rate
        self.start_method = start_method
        self.first_step = 0

    def check(self, fetch: bool = True) -> None:
        """Raise UserError if something is missing or inconsistent, before any work starts.

        Args:
            fetch: read the first sample of remote shards as well, for which its whole shard is fetched.
        """
        training, validation = self._train_stream()[0], self._val_stream()
        if fetch or not is_remote(self.shards):
            training.read_first_sample()
        if validation is not None and (fetch or not is_remote(self.val_shards or ())):
            validation.read_first_sample()

    def describe(self) -> str:
        """Read the first and last sample of the first and last shard; return how many there are."""
        results = []
        for spec in (self.shards, self.val_shards):
            if spec is not None:
                shards = self._open(spec).parts[0]
                for number in {0, len(shards) - 1}:
                    shard, samples = shards[number], int(shards.counts[number])
                    for row in {0, samples - 1} if samples else ():
                        shard.sample(row)
                results.append(f"{int(shards.counts.sum()):,} samples in {len(shards)} shard(s) of {spec}")
        return "; ".join(results)

    def check_channels(self, channels: int) -> None:
        """Raise UserError if these are images with other channels than the first stage has."""
        if channels != self.channels and self.header(self.shards) is None:
            raise UserError(
                f"the first stage takes images of {channels} channels but data.channels={self.channels}: "
                f"set data.channels={channels}, or autoencoder.encoder.in_channels={self.channels} and "
                f"autoencoder.decoder.out_channels={self.channels}"
            )

    def check_latents(self, autoencoder: str) -> None:
        """Raise UserError if the shards contain latents of an autoencoder with another hash."""
        for spec in (self.shards, self.val_shards):
            header = None if spec is None else self.header(spec)
            if header is not None and header.autoencoder != autoencoder:
                raise UserError(
                    f"the latents in {spec} are of autoencoder {header.autoencoder[:12]}, but this model's "
                    f"is {autoencoder[:12]}: encode them again with {ENCODE_COMMAND}"
                )

    def check_captions(self) -> None:
        """Raise UserError if none of the first samples has a caption where `captions` looks for it.

        The json of remote shards is not read, since that would fetch them.
        """
        field = CaptionField(self.captions or {"txt": 1.0}, self.seed)
        sources = self._open(self.shards)
        if "txt" in field.weights and sources.has_captions():
            return
        if any(part.cache is not None for part in sources.parts) and set(field.weights) != {"txt"}:
            return
        if not any(field(sample, 0) for sample in islice(sources.readable_samples(), CAPTIONS_TRIED)):
            where = " and ".join(field.weights).replace("txt", ".txt")
            raise UserError(
                f"none of the first {CAPTIONS_TRIED:,} samples in {self.shards} has a caption in {where}, "
                "but the model is conditioned on captions: pack the images with captions, name the json's "
                "key with data.captions={json.KEY: 1}, or choose another conditioner=..."
            )

    def header(self, spec: str | Sequence[str]) -> LatentHeader | None:
        """Return the header of these shards' latents; None if they contain images."""
        return read_header(*(part.paths for part in self._open(spec).parts))

    def skip_to(self, step: int) -> None:
        """Let training start at this step's batch."""
        self.first_step = step

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of the whole run, which can be resumed."""
        stream, order_hash = self._train_stream()
        loader = ResumableLoader(
            stream,
            self.seed,
            order_hash,
            self.num_workers,
            torch.cuda.is_available(),
            self.max_bad_rate,
            self.start_method,
        )
        loader.skip_to(self.first_step)
        loader.allow_changes = self.allow_changes
        return loader

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Return a loader of the same batches each time; an empty list without `val_shards`."""
        stream = self._val_stream()
        if stream is None:
            return []
        pin = torch.cuda.is_available()
        return BatchLoader(stream, self.num_workers, pin, self.max_bad_rate, self.start_method)

    def _train_stream(self) -> tuple[ShardStream, str]:
        """Return the stream, and the hash of what its order depends on."""
        sources = self._open(self.shards, separately=self.order.weights is not None)
        order = self.order.build(sources, self.seed, self.global_batch_size)
        buckets = self.order.buckets
        sizes = [self.size] if buckets is None else [(h, w) for h, w in buckets.shapes]
        fields = [self._fields(sources, size, self.random_crop, self.flip) for size in sizes]
        rank, world_size = self._rank_and_world_size()
        stream = ShardStream(
            order,
            sources,
            fields,
            self.global_batch_size,
            self.steps,
            rank,
            world_size,
            derived_fields=self.derived_fields,
        )
        return stream, self.order.order_hash(sources)

    def _val_stream(self) -> ShardStream | None:
        if self.val_shards is None:
            return None
        sources = self._open(self.val_shards)
        counts = sources.parts[0].counts
        rank, world_size = self._rank_and_world_size()
        batch, steps = self._val_batch_and_steps(int(counts.sum()), world_size)
        fields = self._fields(sources, self.size, random_crop=False, flip=False)
        return ShardStream(
            SequentialOrder(counts),
            sources,
            [fields],
            batch,
            steps,
            rank,
            world_size,
            derived_fields=self.derived_fields,
        )

    def _val_batch_and_steps(self, samples: int, world_size: int) -> tuple[int, int]:
        """Return (global batch, number of batches): whole batches, or one smaller batch of a small set."""
        if samples >= self.global_batch_size:
            return self.global_batch_size, min(self.val_batches, samples // self.global_batch_size)
        if samples < world_size:
            raise UserError(
                f"data.val_shards={self.val_shards} contains {samples} images for {world_size} "
                "processes: add images, or use fewer processes"
            )
        return samples // world_size * world_size, min(self.val_batches, 1)

    def _open(self, spec: str | Sequence[str], separately: bool = False) -> SourceShards:
        """Open all shards as one source, or each item of the list as its own source."""
        is_validation = spec == self.val_shards and (spec != self.shards or self.index is None)
        index = self.val_index if is_validation else self.index
        try:
            pairs = pair_with_indexes(spec, index) if separately else [(spec, index)]
            return SourceShards([open_shards(item, folder, self.cache) for item, folder in pairs])
        except UserError as error:
            if not is_validation:
                raise
            text = str(error).replace("data.shards", "data.val_shards")
            raise type(error)(text.replace("data.index", "data.val_index")) from error

    def _fields(
        self, sources: SourceShards, size: int | tuple[int, int], random_crop: bool, flip: bool
    ) -> list[Field]:
        header = read_header(*(part.paths for part in sources.parts))
        image_field = ImageField(size, self.seed, random_crop, flip, channels=self.channels)
        if header is None:
            fields: list[Field] = [image_field]
        else:
            self._check_header(header, sources.parts[0].paths[0].parent, image_field)
            fields = header.fields(self.seed)
        if self.captions is not None or sources.has_captions():
            fields.append(CaptionField(self.captions or {"txt": 1.0}, self.seed))
        return [*fields, *self.extra_fields, *(make(image_field) for make in self.spatial_fields)]

    def _check_header(self, header: LatentHeader, folder: Path, image_field: ImageField) -> None:
        if header.size != image_field.size:
            raise UserError(
                f"the latents in {folder} are of {header.size} px images but data.size is "
                f"{image_field.size}: set data.size={header.size}, or encode again with {ENCODE_COMMAND}"
            )
        if image_field.random_crop or image_field.flip:
            raise UserError(
                "latents can be neither cropped nor flipped: set data.random_crop=false and data.flip=false"
            )
        if self.spatial_fields and header.variants > 1:
            raise UserError(
                f"the latents in {folder} are of {header.variants} crops of each image, but "
                f"data.spatial_fields only fit the centre crop: encode again with {ENCODE_COMMAND} crops=0 "
                "flip=false"
            )

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
