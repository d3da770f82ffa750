"""Shards whose images and captions encode the number of the sample, for the tests of corrupt data."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.datamodule import ShardDataModule
from ldm.data.loading.loader import ResumableLoader
from ldm.data.prepare.write_shards import write_shard

PER_SHARD = 6


def jpeg(number: int, size: int = 64, **options: bool) -> bytes:
    """A JPEG whose top left pixels encode its number, with enough texture to have bits that can flip."""
    noise = np.random.default_rng(number).integers(0, 160, (size, size, 3), np.uint8)
    noise[: size // 2, : size // 2] = 12 * number
    file = BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def sample(number: int) -> dict[str, bytes]:
    return {"jpg": jpeg(number), "txt": f"number {number}".encode()}


def write_numbered_shards(folder: Path) -> Path:
    """Write three shards of six samples; caption and first pixel of sample i encode i."""
    for shard in range(3):
        rows = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        write_shard(folder / f"{shard:05d}.tar", [(f"{row:04d}", sample(row)) for row in rows])
    return folder


def replace_sample(folder: Path, number: int, **members: bytes | None) -> None:
    """Write the middle shard again with one of its samples changed; None removes a member."""
    samples = [(f"{row:04d}", sample(row)) for row in range(PER_SHARD, 2 * PER_SHARD)]
    changed = {**sample(number), **members}
    samples[number - PER_SHARD] = (
        f"{number:04d}",
        {kind: data for kind, data in changed.items() if data is not None},
    )
    write_shard(folder / "00001.tar", samples)


def training_loader(folder: Path, max_bad_rate: float = 1.0) -> ResumableLoader:
    module = ShardDataModule(str(folder), None, 3, 64, 2 * PER_SHARD, max_bad_rate=max_bad_rate)
    module.check()
    return module.train_dataloader()


def read_two_epochs(folder: Path) -> tuple[list[int], ResumableLoader]:
    """Return the numbers of two epochs, with image and caption of each checked, and the loader."""
    batches, numbers = training_loader(folder), []
    for batch in batches:
        for key, image, caption in zip(batch["key"], batch["image"], batch["caption"], strict=True):
            number = int(key)
            assert caption == f"number {number}" and abs(int(image[0, 9, 9]) - 12 * number) < 12
            numbers.append(number)
    return numbers, batches
