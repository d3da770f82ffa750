"""Atomic writes: complete or not at all, readable as any other file, flushed where asked."""

import os
import pickle
import stat
from pathlib import Path

import pytest

from ldm import atomic
from ldm.atomic import write_atomically, write_file
from ldm.errors import UserError, WriteError
from tests.support.disks import fill, read_only, small_disk


def test_a_file_is_replaced_and_open_readers_keep_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with write_atomically(path) as temporary:
        temporary.write_text("new and longer")
        assert path.read_text() == "old"
    with open(path) as reader:
        with write_atomically(path) as temporary:
            temporary.write_text("newest")
        assert reader.read() == "new and longer"
    assert path.read_text() == "newest" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), write_atomically(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_named_temporary_file_is_used_and_removed(tmp_path: Path) -> None:
    path, part = tmp_path / "file", tmp_path / ".file.part"
    part.write_text("what a killed process left")
    with write_atomically(path, temporary=part) as temporary:
        assert temporary == part
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask_also_where_the_writer_restricts_them(
    tmp_path: Path, umask: int
) -> None:
    path, before = tmp_path / "file", os.umask(umask)
    try:
        with write_atomically(path) as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, ["file"]), ({"sync_file": False}, []), ({"sync_folder": True}, ["file", "folder"])],
    ids=["default", "nothing", "both"],
)
def test_flushes_what_is_asked_for_in_order(tmp_path: Path, monkeypatch, options, expected) -> None:
    path, synced = tmp_path / "file", []
    sync = atomic.sync

    def record(target: Path) -> None:
        assert path.exists() == target.is_dir(), "the data before the rename, the folder after it"
        synced.append("folder" if target == tmp_path else "file")
        sync(target)

    monkeypatch.setattr(atomic, "sync", record)
    with write_atomically(path, **options) as temporary:
        temporary.write_text("new")
    assert synced == expected


def test_a_full_disk_is_named_and_leaves_the_old_file_alone(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        path = disk / "file"
        write_file(path, "old")
        fill(disk, free=8192)
        with pytest.raises(UserError) as raised:
            write_file(path, bytes(100_000))
        assert str(raised.value) == (
            f"{path} cannot be written (No space left on device): free disk space and run the same command"
            " again"
        )
        assert path.read_text() == "old" and {p.name for p in disk.iterdir()} == {"file", "fill"}
        write_file(path, bytes(4000))
        assert path.stat().st_size == 4000, "the failed one left its space"


def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with read_only(tmp_path / "folder") as folder:
        for path in (folder / "file", folder / "new" / "newer" / "file"):
            with pytest.raises(
                WriteError, match=f"^{path} cannot be written .Read-only file system.: choose"
            ):
                write_file(path, "text")


def test_missing_folders_are_created_and_text_is_utf8(tmp_path: Path) -> None:
    write_file(tmp_path / "a" / "b" / "file", "\u00e9\n")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"\xc3\xa9\n"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "reset"),
        FileNotFoundError(2, "no such file", "/elsewhere/source.jpg"),
        OSError("odd"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_about_anything_else_are_left_alone(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(OSError) as raised, write_atomically(tmp_path / "file"):
        raise error
    assert raised.value is error and list(tmp_path.iterdir()) == []


def test_a_write_error_inside_another_keeps_its_file_and_survives_a_process_boundary(tmp_path: Path) -> None:
    inner = WriteError("index cannot be written (full)", "free disk space")
    with pytest.raises(WriteError) as raised, write_atomically(tmp_path / "shard.tar"):
        raise inner
    assert raised.value is inner and inner.__cause__ is None
    copy = pickle.loads(pickle.dumps(inner))
    assert str(copy) == "index cannot be written (full): free disk space" and copy.problem == inner.problem
