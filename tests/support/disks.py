"""Disks that are full or read-only, also for tests that run as root, whom permissions do not stop."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """Mount an empty disk of this size on `folder`; skip the test where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """Make a folder and what is in it read-only; skip the test where that is not allowed."""
    _mount("--bind", folder, folder)
    try:
        _mount("-o", "remount,bind,ro", folder, folder)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, free: int = 0) -> Path:
    """Fill the disk of `folder` up to `free` bytes with a file, which is returned."""
    file = folder / "fill"
    with open(file, "ab", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            filler.truncate(max(filler.tell() - free, 0))
    return file


def _mount(*words: object) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")
