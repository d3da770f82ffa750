import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ldm.data.index import build_index, fits, index_path, kinds, load_index, walk
from ldm.errors import UserError

MEMBERS = [
    ("000000000.jpg", b"x" * 700),
    ("000000000.txt", b""),
    ("deep/" * 12 + "long" * 24 + ".png", b"y" * 512),
    ("snow/schnee ä☃.png", b"z"),
    ("snow/schnee ä☃.TXT", b"cold"),
]


def tar(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5
            file.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_walk_finds_what_tarfile_finds(tmp_path: Path, format: int) -> None:
    path = tar(tmp_path / "0.tar", MEMBERS, format)
    with tarfile.open(path) as file:
        expected = [(m.name, m.offset_data, m.size) for m in file]
    assert list(walk(path)) == expected
    assert [name for name, _, _ in expected] == [name for name, _ in MEMBERS]


def test_members_group_by_the_name_up_to_its_first_dot(tmp_path: Path) -> None:
    index = build_index(
        tar(tmp_path / "0.tar", [("d/a.jpg", b"1"), ("d/b.txt", b"2"), ("d/a.moments.npy", b"3")])
    )
    assert index["key"].tolist() == [b"d/a", b"d/b"]
    assert kinds(index) == ("jpg", "moments.npy", "txt")
    assert (index["txt"]["offset"] > 0).tolist() == [False, True]


def test_an_empty_member_is_no_missing_member(tmp_path: Path) -> None:
    index = build_index(tar(tmp_path / "0.tar", MEMBERS))
    assert index["txt"]["size"][0] == 0 and index["txt"]["offset"][0] > 0


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two members named a.jpg"):
        build_index(tar(tmp_path / "0.tar", [("a.jpg", b"1"), ("a.jpg", b"2")]))


@pytest.mark.parametrize("cut", [100, 512, 1000, 1600])
def test_a_shard_that_was_cut_is_refused(tmp_path: Path, cut: int) -> None:
    path = tar(tmp_path / "0.tar", [("a.jpg", b"1" * 600), ("b.jpg", b"2" * 600)])
    os.truncate(path, cut)
    with pytest.raises(UserError, match="damaged or cut"):
        build_index(path)


def test_a_page_of_html_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_text("<html>not found</html>" * 100)
    with pytest.raises(UserError, match="damaged or cut at byte 0"):
        build_index(tmp_path / "0.tar")


def test_the_index_is_written_beside_and_read_back(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", MEMBERS)
    built = load_index(path)
    assert index_path(path).is_file()
    assert np.array_equal(load_index(path), built)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.index.npy", "0.tar"]


def test_an_index_of_another_shard_is_built_anew(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", MEMBERS)
    load_index(path)
    tar(path, [(f"{i}.jpg", b"w" * 9000) for i in range(4)])
    assert len(load_index(path)) == 4
    index_path(path).write_bytes(b"garbage")
    assert len(load_index(path)) == 4


def test_fits_takes_any_end_that_a_writer_may_leave(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", MEMBERS)
    index = build_index(path)
    assert fits(index, path.stat().st_size)
    assert not fits(index, path.stat().st_size + 20480)
    assert not fits(index, 700)
