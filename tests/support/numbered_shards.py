"""A folder of shards whose samples tell their numbers, for the tests of bad input."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.datamodule import ShardDataModule
from ldm.data.loading.loader import ResumableLoader
from ldm.data.prepare.write_shards import write_shard

EACH = 6


def jpeg(number: int, size: int = 64, **options: bool) -> bytes:
    """A image whose first pixel tells its number, with enough texture to have bits that can flip."""
    noise = np.random.default_rng(number).integers(0, 160, (size, size, 3), np.uint8)
    noise[: size // 2, : size // 2] = 12 * number
    file = BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def sample(number: int) -> dict[str, bytes]:
    return {"jpg": jpeg(number), "txt": f"number {number}".encode()}


def write(folder: Path) -> Path:
    """Three shards of six samples; sample i has a caption and a first pixel that say i."""
    for shard in range(3):
        rows = range(shard * EACH, (shard + 1) * EACH)
        write_shard(folder / f"{shard:05d}.tar", [(f"{row:04d}", sample(row)) for row in rows])
    return folder


def replace(folder: Path, number: int, **members: bytes | None) -> None:
    """Write the middle shard again, one of its samples changed."""
    samples = [(f"{row:04d}", sample(row)) for row in range(EACH, 2 * EACH)]
    changed = {**sample(number), **members}
    samples[number - EACH] = (
        f"{number:04d}",
        {kind: data for kind, data in changed.items() if data is not None},
    )
    write_shard(folder / "00001.tar", samples)


def loader(folder: Path, max_bad_rate: float = 1.0) -> ResumableLoader:
    module = ShardDataModule(str(folder), None, 3, 64, 2 * EACH, max_bad_rate=max_bad_rate)
    module.check()
    return module.train_dataloader()


def served(folder: Path) -> tuple[list[int], ResumableLoader]:
    """Two epochs of three shards: the numbers served, every one with its own image and caption."""
    made, numbers = loader(folder), []
    for batch in made:
        for key, image, caption in zip(batch["key"], batch["image"], batch["caption"], strict=True):
            number = int(key)
            assert caption == f"number {number}" and abs(int(image[0, 9, 9]) - 12 * number) < 12
            numbers.append(number)
    return numbers, made
