"""Atomic writes: complete or not at all, readable as any other file, flushed where asked."""

import os
import stat
from pathlib import Path

import pytest

from ldm import atomic
from ldm.atomic import write_atomically


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
