"""The training and validation data of a run, as Lightning asks for it."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningDataModule

from ldm.data.latents import Moments, check_header, read_header
from ldm.data.shard import Shards, open_shards
from ldm.data.stream import Batches, InOrder, Loader, Order, Reader, Stream
from ldm.data.transforms import Pictures
from ldm.errors import UserError


class ShardDataModule(LightningDataModule):
    """Shards of pictures, or of latents, as batches of a fixed global size.

    `shards` is a folder, a brace pattern or a list of either. `latents_of` is the hash of the autoencoder
    whose latents the shards must hold; None takes the shards as they are. Training runs `steps` batches;
    validation reads the first `val_batches` batches of `val_shards`, the same each time.
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
        latents_of: str | None = None,
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
        self.latents_of = latents_of
        self.first_step = 0

    def skip_to(self, step: int) -> None:
        """Let training begin with this step's batch."""
        self.first_step = step

    def train_dataloader(self) -> Loader:
        shards = open_shards(self.shards)
        stream = Stream(
            Order(shards.counts, self.seed),
            shards,
            self._reader(self.shards, self.random_crop, self.flip),
            self.global_batch_size,
            self.steps,
            *self._rank_and_world(),
        )
        loader = Loader(stream, self.seed, self.num_workers, pin_memory=torch.cuda.is_available())
        loader.skip_to(self.first_step)
        return loader

    def val_dataloader(self) -> Batches | list:
        if self.val_shards is None:
            return []
        shards = open_shards(self.val_shards)
        rank, world = self._rank_and_world()
        batch, steps = self._val_plan(shards, world)
        reader = self._reader(self.val_shards, random_crop=False, flip=False)
        stream = Stream(InOrder(shards.counts), shards, reader, batch, steps, rank, world)
        return Batches(stream, self.num_workers, pin_memory=torch.cuda.is_available())

    def _val_plan(self, shards: Shards, world: int) -> tuple[int, int]:
        """(global batch, batches): whole batches only, all ranks alike; one smaller batch of a small set."""
        samples = int(shards.counts.sum())
        if samples >= self.global_batch_size:
            return self.global_batch_size, min(self.val_batches, samples // self.global_batch_size)
        if samples < world:
            raise UserError(f"{self.val_shards} holds {samples} pictures for {world} processes: add some")
        return samples // world * world, min(self.val_batches, 1)

    def _reader(self, spec: str | Sequence[str], random_crop: bool, flip: bool) -> Reader:
        header = read_header(spec)
        if self.latents_of is not None:
            header = check_header(header, self.latents_of, self.size, spec)
        if header is not None:
            return Moments(header.shape)
        return Pictures(self.size, self.seed, random_crop, flip)

    def _rank_and_world(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
