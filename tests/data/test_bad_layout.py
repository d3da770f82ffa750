"""Odd names and layouts, old indexes, full disks: no crash, counts right (docs/guide/corrupt_data.md)."""

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm.data.prepare.index_shards import IndexReport, index_shards
from ldm.data.prepare.verify import VerifyReport, verify
from ldm.data.prepare.write_shards import write_shard
from ldm.data.shards import index as index_module
from ldm.data.shards.reader import find_shards, open_shards
from ldm.errors import UserError
from tests.data.shards.test_tar import tar
from tests.support.numbered_shards import (
    PER_SHARD,
    jpeg,
    read_two_epochs,
    replace_sample,
    sample,
    training_loader,
    write_numbered_shards,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_numbered_shards(tmp_path)


def write_members(folder: Path, *names: str) -> tuple[IndexReport, VerifyReport]:
    """Rewrite the middle shard with these members; the last digit of a key is the sample's number."""
    members = [(n, jpeg(int(n.split(".")[0][-1])) if n.endswith("jpg") else b"number 6") for n in names]
    tar(folder / "00001.tar", members)
    paths = find_shards(str(folder))
    return index_shards(paths), verify(paths)


def test_two_members_of_the_same_name(folder: Path) -> None:
    indexed, verified = write_members(folder, "0006.jpg", "0006.txt", "0006.jpg")
    assert "two members named 0006.jpg: remove one" in indexed.corrupt["00001.tar"]
    assert list(verified.findings) == ["corrupt shard"]


def test_the_same_key_in_two_shards(folder: Path) -> None:
    write_members(folder, "0003.jpg")
    shards = open_shards(str(folder))
    assert shards.counts.tolist() == [6, 1, 6]
    assert [shards[1].sample(0).key, shards[0].sample(3).key] == ["0003", "0003"]


def test_names_with_dots(folder: Path) -> None:
    indexed, _ = write_members(folder, "a6.v1.jpg", "a6.v1.txt", "a6.v2.jpg", "a6.v2.txt")
    shard = open_shards(str(folder))[1]
    assert indexed.samples == 14 and indexed.without_image == 0
    assert [(s.key, set(s.members)) for s in map(shard.sample, range(2))] == [
        ("a6.v1", {"jpg", "txt"}),
        ("a6.v2", {"jpg", "txt"}),
    ]


def test_members_that_are_not_sorted(folder: Path) -> None:
    indexed, verified = write_members(folder, "0006.jpg", "0007.jpg", "0007.txt", "0006.txt")
    shard = open_shards(str(folder))[1]
    assert indexed.samples == 14 and not verified.findings
    assert [(s.key, len(s.members)) for s in map(shard.sample, range(2))] == [("0006", 2), ("0007", 2)]


def test_samples_without_an_image(folder: Path) -> None:
    indexed, verified = write_members(folder, "0006.jpg", "0007.txt", "0008.jpg", "0008.txt")
    assert (indexed.samples, indexed.without_image, indexed.captioned) == (14, 1, 13)
    assert list(verified.findings) == ["without an image (left out)", "without a caption"]
    numbers = [key for batch in training_loader(folder) for key in batch["key"]]
    assert set(numbers) == {f"{n:04d}" for n in (*range(6), 6, 8, *range(12, 18))}


def test_an_index_older_than_its_shard(folder: Path) -> None:
    old = (folder / "00001.index").read_bytes()
    replace_sample(folder, 8, jpg=jpeg(8, size=80))
    (folder / "00001.index").write_bytes(old)
    numbers, batches = read_two_epochs(folder)
    assert sorted(numbers) == sorted([*range(18)] * 2) and batches.budget.bad == 0


def test_an_index_older_than_its_shard_under_a_manifest(folder: Path) -> None:
    index_shards(find_shards(str(folder)))
    replace_sample(folder, 8, jpg=jpeg(8, size=80))
    with pytest.raises(UserError, match="00001.tar .* 6 samples .* indexed: .*ldm.cli.index"):
        list(training_loader(folder, max_bad_rate=0.01))
    index_shards(find_shards(str(folder)))
    assert read_two_epochs(folder)[1].budget.bad == 0


def test_a_read_only_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for path in folder.glob("*.index"):
        path.unlink()

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "save_index", refuse)
        patch.setattr(os, "access", lambda *_: False)
        numbers, batches = read_two_epochs(folder)
        with pytest.raises(UserError, match="out=FOLDER .*data.index=FOLDER"):
            index_shards(find_shards(str(folder)))
    assert sorted(numbers) == sorted([*range(18)] * 2) and not list(folder.glob("*.index"))
    index_folder = tmp_path_factory.mktemp("indexes")
    index_shards(find_shards(str(folder)), index_folder)
    shards = open_shards(str(folder), index_folder)
    assert (
        shards.manifest_rows is not None
        and shards[2].sample(5).key == "0017"
        and not list(folder.glob("*.index"))
    )


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Limit files to 4 KB; Python ignores the signal that comes with the limit."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_full_disk(tmp_path: Path, full_disk: None) -> None:
    with pytest.raises(UserError, match="00000.tar .*: free disk space and run the same command again"):
        write_shard(tmp_path / "00000.tar", [(f"{row:04d}", sample(row)) for row in range(PER_SHARD)])
    assert list(tmp_path.iterdir()) == []
