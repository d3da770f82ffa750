import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.data.prepare.index_shards import index_shards
from ldm.data.shards.index import build_index, save_index
from ldm.data.shards.reader import BadSample, Shard, Shards, find_shards, open_shards
from ldm.errors import UserError
from tests.data.shards.test_tar import tar


def test_a_sample_is_read_by_shard_and_row(pack: Callable[..., Shards]) -> None:
    shards = pack(2, 3)
    assert shards.counts.tolist() == [2, 3]
    sample = shards[1].sample(2)
    assert sample.key == "000010002" and sample.read("txt") == b"s1 r2"
    assert set(sample.members) == {"png", "txt"} and sample.shard == shards.paths[1]
    with pytest.raises(BadSample, match="no .jpg for sample 000010002"):
        sample.read("jpg")


def test_folder_pattern_and_list_name_the_same_shards(pack: Callable[..., Shards], tmp_path: Path) -> None:
    paths = list(pack(1, 1, 1).paths)
    folder = tmp_path / "shards"
    assert paths == [folder / f"0000{i}.tar" for i in range(3)]
    assert list(find_shards(str(folder))) == paths
    assert list(find_shards(f"{folder}/{{00000..00002}}.tar")) == paths
    assert list(find_shards([f"{folder}/00000.tar", f"{folder}/{{00001,00002}}.tar"])) == paths


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
    with pytest.raises(UserError, match="contain no samples.*ldm.cli.pack"):
        pack(0, 0)


def test_the_number_of_open_shards_is_limited_and_none_is_pickled(pack: Callable[..., Shards]) -> None:
    opened = pack(1, 1, 1)
    shards = Shards(opened.paths, opened.counts.tolist(), max_open=2)
    assert [shards[i].sample(0).read("txt") for i in (0, 1, 0, 2)] == [b"s0 r0", b"s1 r0", b"s0 r0", b"s2 r0"]
    assert list(shards._open) == [0, 2]
    copy = pickle.loads(pickle.dumps(shards))
    assert not copy._open and copy[1].sample(0).read("txt") == b"s1 r0"


def test_the_manifest_hash_depends_on_names_and_counts_but_not_on_the_folder(
    pack: Callable[..., Shards],
) -> None:
    manifest_hash = pack(2, 3).manifest_hash
    assert pack(2, 3, folder="moved").manifest_hash == manifest_hash
    assert pack(3, 2, folder="other").manifest_hash != manifest_hash


def test_a_truncated_shard_is_noticed(pack: Callable[..., Shards]) -> None:
    shards = pack(3)
    shard = shards[0]
    with open(shards.paths[0], "rb+") as file:
        file.truncate(1024)
    with pytest.raises(BadSample, match="truncated in sample number 2"):
        shard.sample(2)


@pytest.mark.parametrize("offset", [700, 1600])
def test_bytes_that_changed_after_packing_are_noticed(pack: Callable[..., Shards], offset: int) -> None:
    shards = pack(3)
    with open(shards.paths[0], "rb+") as file:
        file.seek(offset)
        file.write(b"\xaa")
    with pytest.raises(BadSample, match="checksum of sample number 0 in .*00000.tar"):
        shards[0].sample(0)
    assert shards[0].sample(1).key == "000000001"


def test_scattered_members_make_one_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(
        tmp_path / "0.tar", [("a.jpg", b"1"), ("b.jpg", b"22" * 999), ("b.txt", b"two"), ("a.txt", b"one")]
    )
    for max_run in (1 << 26, 1024):  # read at once, or member by member
        monkeypatch.setattr("ldm.data.shards.reader.MAX_RUN", max_run)
        samples = [Shard(path).sample(row) for row in range(2)]
        assert [(s.key, s.read("txt"), len(s.read("jpg"))) for s in samples] == [
            ("a", b"one", 1),
            ("b", b"two", 1998),
        ]


def test_an_index_of_another_tar_is_noticed_when_a_sample_is_read(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", [(f"{i}.jpg", b"1" * 600 * (i + 1)) for i in range(4)])
    other = build_index(tar(tmp_path / "1.tar", [(f"{i}.jpg", b"1" * 900 * (i + 1)) for i in range(4)]))
    state = path.stat()
    save_index(other.with_header(shard_bytes=state.st_size, mtime=state.st_mtime_ns), path)
    with pytest.raises(BadSample, match="not where its index says.*ldm.cli.index"):
        Shard(path).sample(2)


def test_shards_without_an_index_are_indexed(pack: Callable[..., Shards], tmp_path: Path) -> None:
    for path in pack(2, 1).paths:
        path.with_suffix(".index").unlink()
    assert open_shards(str(tmp_path / "shards")).counts.tolist() == [2, 1]


def open_with_manifest(folder: Path) -> Shards:
    index_shards(find_shards(str(folder)))
    return open_shards(str(folder))


def test_a_manifest_replaces_the_indexes(pack: Callable[..., Shards], tmp_path: Path) -> None:
    plain, shards = pack(2, 0, 3), open_with_manifest(tmp_path / "shards")
    assert shards.manifest_rows is not None and plain.manifest_rows is None
    assert shards.counts.tolist() == [2, 0, 3] and shards.manifest_hash == plain.manifest_hash
    assert shards.manifest_rows["captioned"].tolist() == [2, 0, 3]
    assert shards[2].sample(1).key == "000020001"
    some = open_shards(f"{tmp_path}/shards/{{00002,00000}}.tar")
    assert some.manifest_rows is not None and some.counts.tolist() == [3, 2]
    assert shards.select(2)[0].sample(0).key == "000020000"


def test_a_shard_that_is_not_in_the_manifest_is_still_read(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    pack(2)
    open_with_manifest(tmp_path / "shards")
    pack(2, 3)
    assert open_shards(str(tmp_path / "shards")).counts.tolist() == [2, 3]


def test_all_samples_of_a_missing_or_changed_shard_are_bad(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    pack(2, 3, 3)
    open_with_manifest(tmp_path / "shards")
    paths = pack(2, 4).paths
    paths[0].unlink()
    shards = Shards([*paths, tmp_path / "shards" / "00002.tar"], [2, 3, 3])
    with pytest.raises(BadSample, match="00000.tar cannot be read"):
        shards[0]
    for _ in range(2):
        with pytest.raises(BadSample, match="00001.tar with 4 samples is not the shard of 3 .*cli.index"):
            shards[1]
    assert len(shards[2]) == 3
