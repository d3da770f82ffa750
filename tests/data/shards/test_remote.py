import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

import pytest

from ldm.data.datamodule import ShardDataModule
from ldm.data.prepare.index_shards import index_shards
from ldm.data.shards import remote
from ldm.data.shards.index import index_path
from ldm.data.shards.reader import BadSample, Shards, find_shards
from ldm.data.shards.remote import Cache, is_remote
from ldm.errors import UserError


@pytest.fixture
def remote_folder(pack: Callable[..., Shards], tmp_path: Path) -> Path:
    """Return a folder of three indexed shards, which the tests only read by URL."""
    pack(2, 3, 4)
    index_shards(find_shards(str(tmp_path / "shards")))
    return tmp_path / "shards"


def keys(shards: Shards) -> list[list[str]]:
    return [[shards[i].sample(row).key for row in range(int(n))] for i, n in enumerate(shards.counts)]


EXPECTED = [[f"0000{shard}000{row}" for row in range(2 + shard)] for shard in range(3)]


@pytest.mark.parametrize(
    "form", ["file://{0}", "file://{0}/{{00000..00002}}.tar", "pipe:cat {0}/{{00000..00002}}.tar"]
)
def test_shards_are_fetched_into_the_cache(remote_folder: Path, tmp_path: Path, form: str) -> None:
    cache = Cache(str(tmp_path / "cache"), max_gb=1)
    shards = cache.open(form.format(remote_folder), remote_folder if form.startswith("pipe:") else None)
    assert is_remote(form) and shards.counts.tolist() == [2, 3, 4]
    assert not list((tmp_path / "cache").glob("*/*.tar")), "fetched on first use"
    assert keys(shards) == EXPECTED
    assert len(list((tmp_path / "cache").glob("*/*.tar"))) == 3
    for path in remote_folder.glob("*.tar"):
        path.unlink()
    again = Cache(str(tmp_path / "cache"), max_gb=1).open(
        form.format(remote_folder), remote_folder if "pipe" in form else None
    )
    assert keys(again) == EXPECTED, "from the cache alone"


@pytest.fixture
def server(remote_folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(remote_folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_shards_are_read_over_http(server: str, tmp_path: Path) -> None:
    shards = Cache(str(tmp_path / "cache"), max_gb=1).open(f"{server}/{{00000,00002}}.tar")
    assert keys(shards) == [EXPECTED[0], EXPECTED[2]]


def test_the_size_of_the_cache_is_limited(remote_folder: Path, tmp_path: Path) -> None:
    size = max(path.stat().st_size for path in remote_folder.glob("*.tar"))
    shards = Cache(str(tmp_path / "cache"), max_gb=2.5 * size / 1e9).open(f"file://{remote_folder}")
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
    monkeypatch.setattr("time.sleep", lambda _: None)
    attempts, copy = [], shutil.copyfileobj

    def copy_part(source: BinaryIO, target: BinaryIO, length: int) -> None:
        if ".tar." in target.name:
            attempts.append(target.name)
        if ".tar." in target.name and len(attempts) < 3:
            target.write(source.read(100))
        else:
            copy(source, target, length)

    monkeypatch.setattr(shutil, "copyfileobj", copy_part)
    shards = Cache(str(tmp_path / "cache"), max_gb=1).open(f"file://{remote_folder}")
    assert shards[0].sample(1).key == "000000001" and len(attempts) == 3


def test_a_shard_that_cannot_be_fetched_is_bad_and_not_cached(
    remote_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_ATTEMPTS", 1)
    shards = Cache(str(tmp_path / "cache"), max_gb=1).open(f"file://{remote_folder}")
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


def test_mistakes_with_remote_shards_are_reported(remote_folder: Path, tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), max_gb=1)
    with pytest.raises(UserError, match="has no manifest.npy .*ldm.cli.index"):
        cache.open(f"file://{remote_folder}/{{00000..00007}}.tar")
    with pytest.raises(UserError, match="one folder or brace pattern, not 2: give "):
        cache.open([f"file://{remote_folder}", f"file://{remote_folder}"])
    with pytest.raises(UserError, match="several folders"):
        cache.open("file:///{a,b}/00000.tar")
    with pytest.raises(UserError, match="s3://bucket.* needs a driver that is not installed"):
        cache.open("s3://bucket/folder")
    with pytest.raises(ValueError, match="max_gb > 0, not 0"):
        Cache("anywhere", 0)


def test_remote_and_local_shards_give_the_same_batches(remote_folder: Path, tmp_path: Path) -> None:
    def batches(spec: str) -> list[list[str]]:
        cache = Cache(str(tmp_path / "cache"), max_gb=1)
        module = ShardDataModule(spec, spec, 4, 8, 5, cache=cache)
        module.check()
        return [batch["key"] for batch in module.train_dataloader()]

    assert batches(f"file://{remote_folder}") == batches(str(remote_folder))
    with pytest.raises(UserError, match="data.cache.folder=FOLDER"):
        ShardDataModule(f"file://{remote_folder}", None, 4, 8, 5).check()
