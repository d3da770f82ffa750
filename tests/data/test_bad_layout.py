"""Odd names and layouts, old indexes, full disks: no crash, counts right (docs/bad_input.md)."""

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
from tests.support.numbered_shards import EACH, jpeg, loader, replace, sample, served, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path)


def layout(folder: Path, *names: str) -> tuple[IndexReport, VerifyReport]:
    """The middle shard with these members, a sample's number in the last digit of its key."""
    write = [(n, jpeg(int(n.split(".")[0][-1])) if n.endswith("jpg") else b"number 6") for n in names]
    tar(folder / "00001.tar", write)
    paths = find_shards(str(folder))
    return index_shards(paths), verify(paths)


def test_two_members_of_one_name(folder: Path) -> None:
    indexed, checked = layout(folder, "0006.jpg", "0006.txt", "0006.jpg")
    assert "holds two members named 0006.jpg: remove one" in indexed.damaged["00001.tar"]
    assert list(checked.found) == ["damaged shard"]


def test_one_key_in_two_shards(folder: Path) -> None:
    layout(folder, "0003.jpg")
    shards = open_shards(str(folder))
    assert shards.counts.tolist() == [6, 1, 6]
    assert [shards[1].sample(0).key, shards[0].sample(3).key] == ["0003", "0003"]


def test_names_with_dots(folder: Path) -> None:
    indexed, _ = layout(folder, "a6.v1.jpg", "a6.v1.txt", "a6.v2.jpg", "a6.v2.txt")
    shard = open_shards(str(folder))[1]
    assert indexed.samples == 14 and indexed.halves == 0
    assert [(s.key, set(s.members)) for s in map(shard.sample, range(2))] == [
        ("a6.v1", {"jpg", "txt"}),
        ("a6.v2", {"jpg", "txt"}),
    ]


def test_members_that_are_not_sorted(folder: Path) -> None:
    indexed, checked = layout(folder, "0006.jpg", "0007.jpg", "0007.txt", "0006.txt")
    shard = open_shards(str(folder))[1]
    assert indexed.samples == 14 and not checked.found
    assert [(s.key, len(s.members)) for s in map(shard.sample, range(2))] == [("0006", 2), ("0007", 2)]


def test_half_samples(folder: Path) -> None:
    indexed, checked = layout(folder, "0006.jpg", "0007.txt", "0008.jpg", "0008.txt")
    assert (indexed.samples, indexed.halves, indexed.captioned) == (14, 1, 13)
    assert list(checked.found) == ["without a image, left out", "without a caption"]
    numbers = [key for batch in loader(folder) for key in batch["key"]]
    assert set(numbers) == {f"{n:04d}" for n in (*range(6), 6, 8, *range(12, 18))}


def test_an_index_older_than_its_shard(folder: Path) -> None:
    old = (folder / "00001.index").read_bytes()
    replace(folder, 8, jpg=jpeg(8, size=80))
    (folder / "00001.index").write_bytes(old)
    numbers, made = served(folder)
    assert sorted(numbers) == sorted([*range(18)] * 2) and made.tally.bad == 0


def test_an_index_older_than_its_shard_under_a_manifest(folder: Path) -> None:
    index_shards(find_shards(str(folder)))
    replace(folder, 8, jpg=jpeg(8, size=80))
    with pytest.raises(
        UserError, match="00001.tar .* is not the shard of 6 that was indexed: .*ldm.cli.index"
    ):
        list(loader(folder, max_bad_rate=0.01))
    index_shards(find_shards(str(folder)))
    assert served(folder)[1].tally.bad == 0


def test_a_read_only_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for path in folder.glob("*.index"):
        path.unlink()

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "save_index", refused)
        patch.setattr(os, "access", lambda *_: False)
        numbers, made = served(folder)
        with pytest.raises(UserError, match="cannot be written: give out=FOLDER here and data.index=FOLDER"):
            index_shards(find_shards(str(folder)))
    assert sorted(numbers) == sorted([*range(18)] * 2) and not list(folder.glob("*.index"))
    elsewhere = tmp_path_factory.mktemp("indexes")
    index_shards(find_shards(str(folder)), elsewhere)
    shards = open_shards(str(folder), elsewhere)
    assert shards.noted is not None and shards[2].sample(5).key == "0017" and not list(folder.glob("*.index"))


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files end at 4 KB; Python ignores the signal that comes with it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_full_disk(tmp_path: Path, full_disk: None) -> None:
    with pytest.raises(
        UserError, match="00000.tar could not be written .*: make room and run the same command again"
    ):
        write_shard(tmp_path / "00000.tar", [(f"{row:04d}", sample(row)) for row in range(EACH)])
    assert list(tmp_path.iterdir()) == []
