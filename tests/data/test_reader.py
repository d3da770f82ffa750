import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.data.reader import Shards, find_shards, open_shards
from ldm.errors import UserError


def test_a_sample_is_read_by_number(pack: Callable[..., Shards]) -> None:
    shards = pack(2, 3)
    assert shards.counts.tolist() == [2, 3]
    assert shards[1].key(2) == "000010002"
    assert shards[1].read(2, "txt") == b"s1 r2"
    assert shards[1].has(2, "png") and not shards[1].has(2, "jpg")
    with pytest.raises(UserError, match="no .jpg for sample 000010002"):
        shards[1].read(2, "jpg")


def test_folder_pattern_and_list_name_the_same_shards(pack: Callable[..., Shards], tmp_path: Path) -> None:
    paths = pack(1, 1, 1).paths
    folder = tmp_path / "shards"
    assert find_shards(str(folder)) == paths
    assert find_shards(f"{folder}/{{00000..00002}}.tar") == paths
    assert find_shards([f"{folder}/00000.tar", f"{folder}/{{00001,00002}}.tar"]) == paths


def test_the_first_missing_shard_is_named_with_the_command(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    pack(1, 1)
    with pytest.raises(UserError, match=r"no shard .*shards/00002.tar.*ldm.cli.pack"):
        find_shards(f"{tmp_path}/shards/{{00000..00004}}.tar")
    with pytest.raises(UserError, match=r"no shard .*nowhere.*ldm.cli.pack"):
        find_shards(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no shards .*empty.*ldm.cli.pack"):
        find_shards(str(tmp_path / "empty"))


def test_shards_without_samples_are_refused(pack: Callable[..., Shards]) -> None:
    with pytest.raises(UserError, match="hold no samples"):
        pack(0, 0)


def test_few_shards_stay_open_and_none_is_pickled(pack: Callable[..., Shards]) -> None:
    opened = pack(1, 1, 1)
    shards = Shards(opened.paths, opened.counts.tolist(), max_open=2)
    assert [shards[i].read(0, "txt") for i in (0, 1, 0, 2)] == [b"s0 r0", b"s1 r0", b"s0 r0", b"s2 r0"]
    assert list(shards._open) == [0, 2]
    sent = pickle.loads(pickle.dumps(shards))
    assert not sent._open and sent[1].read(0, "txt") == b"s1 r0"


def test_the_manifest_depends_on_names_and_counts_not_on_the_place(pack: Callable[..., Shards]) -> None:
    manifest = pack(2, 3).manifest
    assert pack(2, 3, folder="moved").manifest == manifest
    assert pack(3, 2, folder="other").manifest != manifest


def test_a_shard_that_shrank_is_noticed(pack: Callable[..., Shards]) -> None:
    shards = pack(3)
    shard = shards[0]
    with open(shards.paths[0], "rb+") as file:
        file.truncate(1024)
    with pytest.raises(UserError, match="ends inside sample"):
        shard.read(2, "png")


def test_open_shards_indexes_foreign_ones(pack: Callable[..., Shards], tmp_path: Path) -> None:
    for path in pack(2, 1).paths:
        path.with_suffix(".index.npy").unlink()
    assert open_shards(str(tmp_path / "shards")).counts.tolist() == [2, 1]
