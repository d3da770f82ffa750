"""The training and validation data of a run, as Lightning asks for it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule

from ldm.data.arrangement import Arrangement
from ldm.data.batches import Derived, Reader, Stream
from ldm.data.captions import Captions
from ldm.data.latents import ENCODE, LatentHeader, read_header
from ldm.data.loader import Batches, Loader
from ldm.data.mixture import Sources
from ldm.data.reader import BadSample, Shards, open_shards
from ldm.data.remote import Cache, is_remote
from ldm.data.stream import InOrder
from ldm.data.transforms import Pictures
from ldm.errors import UserError

# Lightning doubts the length of any iterable data set; ours serves each step from one worker
warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")


class ShardDataModule(LightningDataModule):
    """Shards of pictures, or of latents, as batches of a fixed global size.

    `shards` and `val_shards` are each a folder, a brace pattern, a URL of either, or a list of these;
    `val_shards` None is no validation. Training runs `steps` batches; validation reads the first
    `val_batches` batches of its shards, the same each time.

    Args:
        size: side of a square crop; latents must be of this size, and `arrangement.buckets` goes before it.
        arrangement: the order of samples: window, mixture, filter, buckets.
        captions: weights of where captions stand, as in `Captions`; None takes `txt`, where shards have it.
        extras: what else a batch holds of a sample, as its class or cached text states.
        aligned: what it holds that shares the picture's crop and flip, each made with the `Pictures` that
            says which: as `ldm.data.aligned`.
        derived: what is made from all these, in order: as `ldm.data.masks`, `ldm.data.degradations`.
        index: folder of the shards' indexes, where they do not lie beside them.
        cache: where remote shards are kept on this machine.
        max_bad_rate: of samples that may be bad before the run is stopped; 0 stops at the first.
        start_method: of worker processes: fork, forkserver or spawn; None is forkserver where there is one.
        channels: of a picture, as in `Pictures`.
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
        arrangement: Arrangement | None = None,
        captions: Mapping[str, float] | None = None,
        extras: Sequence[Reader] = (),
        aligned: Sequence[Callable[[Pictures], Reader]] = (),
        derived: Sequence[Derived] = (),
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
        self.arrangement = arrangement or Arrangement()
        self.captions = captions
        self.extras, self.aligned, self.derived = list(extras), list(aligned), list(derived)
        self.index = None if index is None else Path(index).expanduser()
        self.cache = cache
        self.max_bad_rate = max_bad_rate
        self.start_method = start_method
        self.first_step = 0

    def check(self) -> None:
        """UserError for what is missing or does not fit, before any work starts."""
        training, validation = self._train_stream()[0], self._val_stream()
        if not is_remote(self.shards):  # to try one would fetch its shard
            training.try_one()
        if validation is not None and self.val_shards is not None and not is_remote(self.val_shards):
            validation.try_one()

    def check_channels(self, channels: int) -> None:
        """UserError where these are pictures of other channels than the first stage takes."""
        if channels != self.channels and self.header(self.shards) is None:
            raise UserError(
                f"the first stage takes pictures of {channels} channels and data.channels={self.channels}: "
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
        """Whose latents these shards hold; None where they hold pictures."""
        return read_header(*(part.paths for part in self._open(spec).parts))

    def skip_to(self, step: int) -> None:
        """Let training begin with this step's batch."""
        self.first_step = step

    def train_dataloader(self) -> Loader:
        """Batches of the whole run, resumable."""
        stream, manifest = self._train_stream()
        loader = Loader(
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

    def val_dataloader(self) -> Batches | list[Batches]:
        """The same batches each time, none without `val_shards`."""
        stream = self._val_stream()
        if stream is None:
            return []
        pin = torch.cuda.is_available()
        return Batches(stream, self.num_workers, pin, self.max_bad_rate, self.start_method)

    def _train_stream(self) -> tuple[Stream, str]:
        """The stream, and the hash of what its order depends on."""
        sources = self._open(self.shards, apart=self.arrangement.weights is not None)
        order = self.arrangement.order(sources, self.seed, self.global_batch_size)
        buckets = self.arrangement.buckets
        sizes = [self.size] if buckets is None else [(h, w) for h, w in buckets.shapes]
        readers = [self._readers(sources, size, self.random_crop, self.flip) for size in sizes]
        rank, world = self._rank_and_world()
        stream = Stream(
            order, sources, readers, self.global_batch_size, self.steps, rank, world, derived=self.derived
        )
        return stream, self.arrangement.identity(sources)

    def _val_stream(self) -> Stream | None:
        if self.val_shards is None:
            return None
        sources = self._open(self.val_shards)
        counts = sources.parts[0].counts
        rank, world = self._rank_and_world()
        batch, steps = self._val_plan(int(counts.sum()), world)
        readers = self._readers(sources, self.size, random_crop=False, flip=False)
        return Stream(InOrder(counts), sources, [readers], batch, steps, rank, world, derived=self.derived)

    def _val_plan(self, samples: int, world: int) -> tuple[int, int]:
        """(global batch, batches): whole batches only, all ranks alike; one smaller batch of a small set."""
        if samples >= self.global_batch_size:
            return self.global_batch_size, min(self.val_batches, samples // self.global_batch_size)
        if samples < world:
            raise UserError(f"{self.val_shards} holds {samples} pictures for {world} processes: add some")
        return samples // world * world, min(self.val_batches, 1)

    def _open(self, spec: str | Sequence[str], apart: bool = False) -> Sources:
        """All shards as one source, or each entry as its own."""
        listed = [spec] if isinstance(spec, str) else list(spec)
        return Sources([self._opened(one) for one in (listed if apart else [listed])])

    def _opened(self, spec: str | Sequence[str]) -> Shards:
        if not is_remote(spec):
            return open_shards(spec, self.index)
        if self.cache is None:
            raise UserError(
                f"{spec} is not on this machine: name a folder for shards with data.cache.folder=FOLDER"
            )
        return self.cache.open(spec, self.index)

    def _readers(
        self, sources: Sources, size: int | tuple[int, int], random_crop: bool, flip: bool
    ) -> list[Reader]:
        header = read_header(*(part.paths for part in sources.parts))
        pictures = Pictures(size, self.seed, random_crop, flip, channels=self.channels)
        if header is None:
            readers: list[Reader] = [pictures]
        else:
            self._check_encoded(header, sources.parts[0].paths[0].parent, pictures)
            readers = header.readers(self.seed)
        if self.captions is not None or _captioned(sources):
            readers.append(Captions(self.captions or {"txt": 1.0}, self.seed))
        return [*readers, *self.extras, *(make(pictures) for make in self.aligned)]

    def _check_encoded(self, header: LatentHeader, folder: Path, pictures: Pictures) -> None:
        if header.size != pictures.size:
            raise UserError(
                f"the latents in {folder} are of {header.size} px pictures and data.size is "
                f"{pictures.size}: set data.size={header.size}, or encode again with {ENCODE}"
            )
        if pictures.random_crop or pictures.flip:
            raise UserError(
                "latents are neither cropped nor flipped: set data.random_crop and data.flip to false"
            )
        if self.aligned and header.variants > 1:
            raise UserError(
                f"the latents in {folder} are of {header.variants} crops of each picture, and data.aligned "
                f"fits the middle one alone: encode again with {ENCODE} crops=0 flip=false"
            )

    def _rank_and_world(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def _captioned(sources: Sources) -> bool:
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
