import os
from pathlib import Path

import pytest

from ldm.data.sources.files import file_version, read_file
from ldm.data.sources.record import SkippedRecord


def test_a_file_that_cannot_be_read_costs_its_record(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert read_file(tmp_path / "a.jpg", "a") == b"image"
    for name, reason, detail in [
        ("b.jpg", "missing", ""),
        ("a.jpg/b.jpg", "unreadable", " (Not a directory)"),
        ("folder.jpg", "unreadable", " (a folder or a device, not a file)"),
        ("pipe.jpg", "unreadable", " (a folder or a device, not a file)"),
        ("loop.jpg", "unreadable", " (Too many levels of symbolic links)"),
        ("x" * 300, "unreadable", " (File name too long)"),
        ("a\0.jpg", "missing", ""),
        ("\ud800.jpg", "missing", ""),
    ]:
        with pytest.raises(SkippedRecord) as skipped:
            read_file(tmp_path / name, "n")
        assert (skipped.value.reason, skipped.value.name) == (reason, f"n{detail}"), name
        assert len(file_version(tmp_path / name)) > 3


def test_a_file_without_permission_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    before = file_version(tmp_path / "a.jpg")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read every file
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SkippedRecord) as skipped:
        read_file(tmp_path / "a.jpg", "a.jpg")
    assert (skipped.value.reason, skipped.value.name) == ("unreadable", "a.jpg (Permission denied)")
    assert file_version(tmp_path / "a.jpg") != before  # after chmod, it is packed


def test_the_version_of_a_file_changes_with_its_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    versions = {file_version(file)}
    for text, time in (("a", 10), ("b", 11), ("bc", 11)):
        file.write_text(text)
        os.utime(file, ns=(0, time))
        versions.add(file_version(file))
        assert file_version(file) == file_version(file)
    assert len(versions) == 4
