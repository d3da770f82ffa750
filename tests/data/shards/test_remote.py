import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from ldm.data.datamodule import ShardDataModule
from ldm.data.prepare.index_shards import index_shards
from ldm.data.shards import transfer
from ldm.data.shards.index import index_path
from ldm.data.shards.reader import BadSample, Shards, find_shards, open_shards
from ldm.data.shards.remote import Cache
from ldm.data.shards.transfer import is_remote
from ldm.errors import UserError


@pytest.fixture
def remote_folder(pack: Callable[..., Shards], tmp_path: Path) -> Path:
    """Return a folder of three indexed shards, which the tests only read by URL."""
    pack(2, 3, 4)
    index_shards(find_shards(str(tmp_path / "shards")))
    return tmp_path / "shards"


def cache_in(folder: Path, max_gb: float = 1) -> Cache:
    return Cache(str(folder / "cache"), max_gb)


def keys(shards: Shards) -> list[list[str]]:
    return [[shards[i].sample(row).key for row in range(int(n))] for i, n in enumerate(shards.counts)]


EXPECTED = [[f"0000{shard}000{row}" for row in range(2 + shard)] for shard in range(3)]


@pytest.mark.parametrize(
    "form", ["file://{0}", "file://{0}/{{00000..00002}}.tar", "pipe:cat {0}/{{00000..00002}}.tar"]
)
def test_shards_are_fetched_into_the_cache(remote_folder: Path, tmp_path: Path, form: str) -> None:
    index = remote_folder if form.startswith("pipe:") else None
    shards = open_shards(form.format(remote_folder), index, cache_in(tmp_path))
    assert is_remote(form) and shards.counts.tolist() == [2, 3, 4]
    assert not list((tmp_path / "cache").glob("*/*.tar")), "fetched on first use"
    assert keys(shards) == EXPECTED
    assert len(list((tmp_path / "cache").glob("*/*.tar"))) == 3
    for path in remote_folder.glob("*.tar"):
        path.unlink()
    again = open_shards(form.format(remote_folder), index, cache_in(tmp_path))
    assert keys(again) == EXPECTED, "from the cache alone"


def test_the_size_of_the_cache_is_limited(remote_folder: Path, tmp_path: Path) -> None:
    size = max(path.stat().st_size for path in remote_folder.glob("*.tar"))
    shards = open_shards(f"file://{remote_folder}", cache=cache_in(tmp_path, 2.5 * size / 1e9))
    shards._max_open = 1
    cached = []
    for number in (0, 1, 2, 0, 2):
        assert shards[number].sample(0).key == EXPECTED[number][0]
        cached.append({path.name for path in (tmp_path / "cache").glob("*/*.tar")})
        for age, path in enumerate(
            sorted((tmp_path / "cache").glob("*/*.tar"), key=lambda p: p.stat().st_atime)
        ):
            os.utime(path, ns=(age, path.stat().st_mtime_ns))  # the clock is too coarse for this
    assert cached[1:] == [
        {"00000.tar", "00001.tar"},
        {"00001.tar", "00002.tar"},
        {"00002.tar", "00000.tar"},
        {"00002.tar", "00000.tar"},
    ]


def test_an_incomplete_transfer_is_retried(
    remote_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command whose first two outputs are cut, which only the size in the index shows."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    count = f"echo >> {tmp_path}/tries; [ $(wc -l < {tmp_path}/tries) -ge 3 ]"
    command = (
        f"pipe:if {count}; then cat {remote_folder}/00000.tar; else head -c 100 {remote_folder}/00000.tar; fi"
    )
    shards = open_shards(command, remote_folder, cache_in(tmp_path))
    assert shards[0].sample(1).key == "000000001" and (tmp_path / "tries").read_text() == "\n" * 3


def test_a_shard_that_cannot_be_fetched_is_bad_and_not_cached(
    remote_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "MAX_ATTEMPTS", 1)
    shards = open_shards(f"file://{remote_folder}", cache=cache_in(tmp_path))
    (remote_folder / "00000.tar").unlink()
    with open(remote_folder / "00001.tar", "rb+") as file:
        file.truncate(2000)  # without its index, below, the right length is unknown
    index_path(remote_folder / "00001.tar").unlink()
    for number in range(2):
        with pytest.raises(BadSample, match=f"0000{number}.tar cannot be read"):
            shards[number]
    assert shards[2].sample(3).key == "000020003"
    assert [path.name for path in (tmp_path / "cache").glob("*/*.tar")] == ["00002.tar"]
    assert not list((tmp_path / "cache").glob("*/.*.tmp"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "file://{0}/{{00000..00007}}.tar",
            "{00007}.tar has no manifest.npy .*ldm.cli.index shards=URL out=FOLDER",
        ),
        ("file://{0}/nowhere", "/nowhere has no manifest.npy that lists the shards"),
        ("pipe:cat {0}/{{00000..00002}}.tar", "pipe:cat .* has no manifest.npy .* set data.index=FOLDER"),
        ("pipe:cat {0}", "names no shard: write its name"),
        ("file:///{{a,b}}/00000.tar", "several folders: give a list"),
        ("s3://bucket/folder", "s3://bucket.* needs a driver that is not installed: Install s3fs"),
        ("nonsense://bucket/folder", "has an unknown protocol: use s3://"),
        (
            "http://127.0.0.1:9/x",
            r"x/manifest.npy cannot be read \(Cannot connect .*\): check the URL and the network",
        ),
    ],
)
def test_mistakes_with_remote_shards_are_reported(
    remote_folder: Path, tmp_path: Path, spec: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    message = message.replace("{00007}", "..00007}")
    with pytest.raises(UserError, match=message):
        open_shards(spec.format(remote_folder), cache=cache_in(tmp_path))


def test_a_cache_that_cannot_be_written_is_reported(remote_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="/proc/x, cannot be created .*: choose another folder with data.cache"
    ):
        open_shards(f"file://{remote_folder}", cache=Cache("/proc/x", 1))
    with pytest.raises(ValueError, match="max_gb > 0, not 0"):
        Cache("anywhere", 0)


@pytest.mark.parametrize("form", ["file://{0}", "pipe:cat {0}/{{00000..00002}}.tar"])
def test_the_shards_of_a_folder_are_listed(remote_folder: Path, tmp_path: Path, form: str) -> None:
    """With or without a manifest; one that lists shards which are not there is a mistake."""
    names = ["00000.tar", "00001.tar", "00002.tar"]
    assert [path.name for path in find_shards(form.format(remote_folder), cache_in(tmp_path))] == names
    (remote_folder / "00001.tar").unlink()
    if form.startswith("file"):
        with pytest.raises(UserError, match="1 shards of file://.* are missing, the first is 00001.tar"):
            find_shards(form.format(remote_folder), cache_in(tmp_path))
    (remote_folder / "manifest.npy").unlink()
    names = names if form.startswith("pipe") else [names[0], names[2]]
    assert [path.name for path in find_shards(form.format(remote_folder), cache_in(tmp_path))] == names
    for path in remote_folder.glob("*.tar"):
        path.unlink()
    if form.startswith("file"):
        with pytest.raises(UserError, match="contains no shards .* or its server does not list them"):
            find_shards(form.format(remote_folder), cache_in(tmp_path))


def test_a_failing_command_is_reported_by_its_last_message(remote_folder: Path, tmp_path: Path) -> None:
    shards = open_shards(
        f"pipe:echo >&2 no such bucket; false {remote_folder}/00000.tar", remote_folder, cache_in(tmp_path)
    )
    with patch("time.sleep"), pytest.raises(BadSample, match="00000.tar: exit status 1: no such bucket"):
        shards[0]


def test_an_unusual_error_of_a_driver_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(url: str) -> None:
        raise ValueError("no credentials")

    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(transfer.fsspec, "url_to_fs", fail)
    with pytest.raises(
        transfer.Unreachable, match=r"npy cannot be read \(ValueError: no credentials\): check"
    ):
        open_shards("s3://bucket/x", cache=cache_in(tmp_path))


def test_a_remote_index_is_read_without_its_shard(remote_folder: Path, tmp_path: Path) -> None:
    shards = open_shards(f"file://{remote_folder}", cache=cache_in(tmp_path))
    shards.fetch_indexes()
    assert [len(shards.load_index(n)) for n in range(3)] == [2, 3, 4]
    assert not list((tmp_path / "cache").glob("*/*.tar"))
    copy = next((tmp_path / "cache").glob("*/00001.index"))
    copy.write_bytes((remote_folder / "00002.index").read_bytes())
    assert len(shards.load_index(1)) == 3, "an outdated copy is replaced"
    copy.unlink()
    (remote_folder / "00001.index").unlink()
    with pytest.raises(UserError, match="the index of file://.*/00001.tar is missing, or of another shard"):
        shards.load_index(1)


def test_remote_and_local_shards_give_the_same_batches(remote_folder: Path, tmp_path: Path) -> None:
    def batches(spec: str) -> list[list[str]]:
        cache = cache_in(tmp_path)
        module = ShardDataModule(spec, spec, 4, 8, 5, cache=cache)
        module.check()
        return [batch["key"] for batch in module.train_dataloader()]

    assert batches(f"file://{remote_folder}") == batches(str(remote_folder))
    with pytest.raises(UserError, match="data.cache.folder=FOLDER"):
        ShardDataModule(f"file://{remote_folder}", None, 4, 8, 5).check()
