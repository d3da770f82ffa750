"""Tests that start processes: the pool that packs shards, and the workers of a loader."""

from pathlib import Path

import pytest
from PIL import Image

from ldm.data.fields.image import ImageField
from ldm.data.loading.batches import ShardStream
from ldm.data.loading.loader import ResumableLoader
from ldm.data.order.shuffle import ShuffledOrder
from ldm.data.prepare.write_shards import write_shards
from ldm.data.shards.reader import open_shards
from ldm.data.sources import Record
from ldm.errors import UserError
from tests.data.prepare.test_write_shards import content

RECORDS = [
    Record(Image.new("RGB", (8, 8), (row, 0, 0)), "" if row == 7 else f"image {row}") for row in range(40)
]


def training_loader(
    folder: Path, num_workers: int, start_method: str | None = None, size: int = 8
) -> ResumableLoader:
    shards = open_shards(str(folder))
    stream = ShardStream(
        ShuffledOrder(shards.counts, 5),
        shards,
        [[ImageField(size, 5, True, True)]],
        global_batch_size=6,
        steps=11,
    )
    return ResumableLoader(
        stream, 5, shards.manifest_hash, num_workers, max_bad_rate=0, start_method=start_method
    )


@pytest.mark.multiprocess
def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    for num_workers in (0, 2):
        write_shards(RECORDS, tmp_path / str(num_workers), shard_size=16, num_workers=num_workers)
    single, pooled = (sorted((tmp_path / name).iterdir()) for name in ("0", "2"))
    assert [content(path) for path in single] == [content(path) for path in pooled]

    expected = [batch["key"] for batch in training_loader(tmp_path / "0", num_workers=0)]
    workers = training_loader(tmp_path / "0", num_workers=2)
    batches = iter(workers)
    read = [next(batches)["key"] for _ in range(3)]
    assert workers.state_dict()["step"] == 3  # yielded, no matter how many were prefetched
    del batches
    assert read + [batch["key"] for batch in workers] == expected

    with open(tmp_path / "0" / "00001.tar", "rb+") as file:
        file.seek(800)
        file.write(bytes(2000))
    with pytest.raises(UserError, match="^the shard .*00001.tar cannot be read .* at byte"):
        list(training_loader(tmp_path / "0", num_workers=2))


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_the_start_method_changes_nothing(tmp_path: Path, start_method: str) -> None:
    write_shards(RECORDS, tmp_path, shard_size=16)
    expected = [batch["key"] for batch in training_loader(tmp_path, num_workers=0)]
    assert [batch["key"] for batch in training_loader(tmp_path, 2, start_method)] == expected
