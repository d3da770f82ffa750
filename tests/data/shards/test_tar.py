import io
import os
import tarfile
from pathlib import Path

import pytest

from ldm.data.shards.tar import (
    BLOCK,
    CorruptTar,
    DuplicateMember,
    Member,
    group_samples,
    read_plain_sample,
    walk,
)

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
        expected = [(m.name, m.offset, m.offset_data, m.size) for m in file]
    members = list(walk(path))
    assert [(m.name, m.data, m.size) for m in members] == [(n, d, s) for n, _, d, s in expected]
    assert [name for name, _, _, _ in expected] == [name for name, _ in MEMBERS]
    assert [m.start for m in members[1:]] == [m.end for m in members[:-1]], (
        "the header of a long name belongs to its file"
    )


def test_walk_skips_folders_and_links(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT) as file:
        for name, kind in (
            ("folder", tarfile.DIRTYPE),
            ("a.txt", tarfile.REGTYPE),
            ("link", tarfile.SYMTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.txt"
            file.addfile(info, io.BytesIO())
    assert [m.name for m in walk(tmp_path / "0.tar")] == ["a.txt"]


@pytest.mark.parametrize("size", [0, 100, 512, 1000, 1600, 2048, 3072, 3583])
def test_a_truncated_tar_is_corrupt_even_at_a_member_boundary(tmp_path: Path, size: int) -> None:
    path = tar(tmp_path / "0.tar", [("a.jpg", b"1" * 600), ("b.jpg", b"2" * 600)], tarfile.USTAR_FORMAT)
    assert len(list(walk(path))) == 2
    os.truncate(path, size)
    with pytest.raises(CorruptTar, match=r"at byte \d+$"):
        list(walk(path))


@pytest.mark.parametrize("offset", [0, 1536])
@pytest.mark.parametrize("data", [bytes(512), bytes(1024), b"\xff" * 512, b"0" * 512])
def test_a_tar_with_an_overwritten_header_is_corrupt(tmp_path: Path, offset: int, data: bytes) -> None:
    path = tar(tmp_path / "0.tar", [("a.jpg", b"1" * 600), ("b.jpg", b"2" * 600)], tarfile.USTAR_FORMAT)
    with open(path, "rb+") as file:
        file.seek(offset)
        file.write(data)
    with pytest.raises(CorruptTar, match=f"at byte {offset}"):
        list(walk(path))


FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
NAMES = [
    ("d/a.jpg", "d/a.JSON", "d/a.seg.png"),
    ("a.moments.npy", "a.txt"),
    ("a.v1.jpg", "a.v1.txt"),
    ("a.jpg", "b.jpg", "a.txt"),
    ("x" * 120 + ".jpg", "x" * 120 + ".txt"),  # more than USTAR can hold
    ("ä.jpg", "ä.txt"),
    ("d/.hidden.jpg", "d/.hidden.txt"),
]
CASES = [(n, f) for n in NAMES for f in FORMATS if f != tarfile.USTAR_FORMAT or len(n[0]) <= 100]


@pytest.mark.parametrize(("names", "format"), CASES)
def test_both_parsers_read_an_ordinary_sample_alike(tmp_path: Path, names: list[str], format: int) -> None:
    path = tar(tmp_path / "0.tar", [(name, name.encode() * 99) for name in names], format)
    members = list(walk(path))
    run = path.read_bytes()[: members[-1].end]
    general = {
        key: {kind: run[m.data : m.data + m.size] for kind, m in group.items()}
        for key, group in group_samples(members).items()
    }
    plain = read_plain_sample(run)
    assert plain is None or {plain[0]: plain[1]} == general
    is_ordinary = names[0] in ("d/a.jpg", "a.moments.npy", "ä.jpg") and format != tarfile.PAX_FORMAT
    assert (plain is not None) == is_ordinary, "PAX stores the fractional mtime in an extra header"
    assert read_plain_sample(run[:-BLOCK]) is None


def group_names(*names: str) -> dict[str, list[str]]:
    return {key: list(group) for key, group in group_samples(Member(n, 0, 0, 0) for n in names).items()}


def test_members_are_grouped_by_the_name_before_the_first_dot() -> None:
    assert group_names("d/a.jpg", "d/b.TXT", "d/a.moments.npy", "d/a.seg.png") == {
        "d/a": ["jpg", "moments.npy", "seg.png"],
        "d/b": ["txt"],
    }
    assert group_names("a.moments.npy", "b.moments.npy") == {"a": ["moments.npy"], "b": ["moments.npy"]}


def test_names_with_dots_are_separate_samples() -> None:
    assert group_names("img.v1.jpg", "img.v1.txt", "img.v2.jpg", "b.jpg") == {
        "img.v1": ["jpg", "txt"],
        "img.v2": ["jpg"],
        "b": ["jpg"],
    }
    assert group_names("x.2.moments.npy", "x.3.moments.npy") == {
        "x.2": ["moments.npy"],
        "x.3": ["moments.npy"],
    }


def test_files_without_an_extension_or_a_name_are_ignored() -> None:
    assert group_names("README", ".DS_Store", "._a.jpg", "a.jpg") == {"a": ["jpg"]}


def test_two_members_of_the_same_name_are_refused() -> None:
    with pytest.raises(DuplicateMember, match="two members named a.jpg"):
        group_names("a.jpg", "b.jpg", "a.jpg")
