"""The training and validation data of a run, as Lightning asks for it."""

import warnings
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningDataModule

from ldm.data.latents import ENCODE, Moments, read_header
from ldm.data.reader import Shards, find_shards, open_shards
from ldm.data.stream import Batches, InOrder, Loader, Order, Reader, Stream
from ldm.data.transforms import Pictures
from ldm.errors import UserError

# Lightning doubts the length of any iterable data set; ours serves each step from one worker
warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")


class ShardDataModule(LightningDataModule):
    """Shards of pictures, or of latents, as batches of a fixed global size.

    `shards` and `val_shards` are each a folder, a brace pattern or a list of either; `val_shards` None is no
    validation. Training runs `steps` batches; validation reads the first `val_batches` batches of its shards,
    the same each time.
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
    ) -> None:
        super().__init__()
        self.shards = shards
        self.val_shards = val_shards
        self.global_batch_size = global_batch_size
        self.size = size
        self.steps = steps
        self.seed = seed
        self.num_workers = num_workers
        self.random_crop = random_crop
        self.flip = flip
        self.val_batches = val_batches
        self.first_step = 0

    def check(self) -> None:
        """UserError for what is missing or does not fit, before any work starts."""
        self._train_stream()
        self._val_stream()

    def check_latents(self, autoencoder: str) -> None:
        """UserError where the shards hold latents of another autoencoder than the one of this hash."""
        for spec in self._specs():
            header = read_header(find_shards(spec))
            if header is not None and header.autoencoder != autoencoder:
                raise UserError(
                    f"the latents in {spec} are of autoencoder {header.autoencoder[:12]}, this model's is "
                    f"{autoencoder[:12]}: encode them again with {ENCODE}"
                )

    def skip_to(self, step: int) -> None:
        """Let training begin with this step's batch."""
        self.first_step = step

    def train_dataloader(self) -> Loader:
        """Batches of the whole run, resumable."""
        pin = torch.cuda.is_available()
        loader = Loader(self._train_stream(), self.seed, self.num_workers, pin_memory=pin)
        loader.skip_to(self.first_step)
        return loader

    def val_dataloader(self) -> Batches | list[Batches]:
        """The same batches each time, none without `val_shards`."""
        stream = self._val_stream()
        return [] if stream is None else Batches(stream, self.num_workers, torch.cuda.is_available())

    def _specs(self) -> list[str | Sequence[str]]:
        return [spec for spec in (self.shards, self.val_shards) if spec is not None]

    def _train_stream(self) -> Stream:
        shards = open_shards(self.shards)
        read = self._reader(shards, self.random_crop, self.flip)
        order = Order(shards.counts, self.seed)
        return Stream(order, shards, read, self.global_batch_size, self.steps, *self._rank_and_world())

    def _val_stream(self) -> Stream | None:
        if self.val_shards is None:
            return None
        shards = open_shards(self.val_shards)
        rank, world = self._rank_and_world()
        batch, steps = self._val_plan(int(shards.counts.sum()), world)
        read = self._reader(shards, random_crop=False, flip=False)
        return Stream(InOrder(shards.counts), shards, read, batch, steps, rank, world)

    def _val_plan(self, samples: int, world: int) -> tuple[int, int]:
        """(global batch, batches): whole batches only, all ranks alike; one smaller batch of a small set."""
        if samples >= self.global_batch_size:
            return self.global_batch_size, min(self.val_batches, samples // self.global_batch_size)
        if samples < world:
            raise UserError(f"{self.val_shards} holds {samples} pictures for {world} processes: add some")
        return samples // world * world, min(self.val_batches, 1)

    def _reader(self, shards: Shards, random_crop: bool, flip: bool) -> Reader:
        header = read_header(shards.paths)
        if header is None:
            return Pictures(self.size, self.seed, random_crop, flip)
        if header.size != self.size:
            raise UserError(
                f"the latents in {shards.paths[0].parent} are of {header.size} px pictures and data.size is "
                f"{self.size}: set data.size={header.size}, or encode again with {ENCODE}"
            )
        if random_crop or flip:
            raise UserError(
                "latents are neither cropped nor flipped: set data.random_crop and data.flip to false"
            )
        return Moments(header.shape)

    def _rank_and_world(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
