"""The commands `index` and `verify`."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ldm.cli import index, verify
from ldm.data.prepare.write_shards import write_shards
from ldm.data.shards.index import read_index
from ldm.data.shards.reader import open_shards
from ldm.data.sources import Record

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    def run(main: Callable[[], None], *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", "workers=0", *map(str, words)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = [Record(Image.new("RGB", (9, 8), (row, 0, 0)), f"image {row}") for row in range(7)]
    write_shards(source, tmp_path / "shards", shard_size=3)
    return tmp_path / "shards"


def test_only_new_shards_are_indexed(shell: Shell, folder: Path) -> None:
    status, out, err = shell(index.main, f"shards={folder}")
    assert status == 0 and "7 samples in 3 shards, 0 of them new" in out, err
    (folder / "00001.index").unlink()
    assert "3 shards, 1 of them new" in shell(index.main, f"shards={folder}", "facts=true")[1]
    stored = read_index(folder / "00001.index")
    assert stored is not None and stored.rows["width"].tolist() == [9, 9, 9] and stored.checksums is None
    assert "1 of them new" in shell(index.main, f"shards={folder}", "sums=true")[1]
    stored = read_index(folder / "00001.index")
    assert stored is not None and stored.checksums is not None and stored.header["has_metadata"] == 1


def test_the_score_is_read_under_another_key_and_kept(shell: Shell, folder: Path) -> None:
    scores = [{"aesthetic": row} for row in range(5)] + [{"aesthetic": None}, {"score": 9}]
    image = Image.new("RGB", (9, 8))
    write_shards([Record(image, "text", score) for score in scores], folder.parent / "scored", shard_size=4)
    words = [f"shards={folder.parent}/scored"]
    status, out, err = shell(index.main, *words, "score=aesthetic")
    assert status == 0 and "2 shards, 2 of them new" in out, err
    assert "0 samples without a width and height" in out and "2 without a score" in out

    def stored() -> list[float]:
        indexes = [read_index(folder.parent / "scored" / f"0000{n}.index") for n in range(2)]
        assert all(i is not None and i.checksums is not None for i in indexes)
        return [score for i in indexes if i is not None for score in i.rows["score"].tolist()]

    assert stored()[:5] == [0, 1, 2, 3, 4]
    for words_again in (words, [*words, "facts=true"], [*words, "sums=true"], [*words, "score=aesthetic"]):
        assert "0 of them new" in shell(index.main, *words_again)[1] and stored()[:5] == [0, 1, 2, 3, 4]
    assert "2 of them new" in shell(index.main, *words, "score=score")[1] and stored()[-1] == 9
    status, _, err = shell(index.main, *words, "score=aestetic")
    assert status == 2 and "has a number 'aestetic': name the key" in err.splitlines()[-1]


def test_a_new_score_keeps_the_checksums_of_the_original(shell: Shell, folder: Path) -> None:
    time = (folder / "00002.tar").stat()
    with open(folder / "00002.tar", "rb+") as file:
        file.seek(520)
        file.write(b"\xff")
    os.utime(folder / "00002.tar", ns=(time.st_atime_ns, time.st_mtime_ns))  # damage leaves the time as it is
    status, out, err = shell(index.main, f"shards={folder}", "score=likes")
    assert status == 2 and "3 of them new" in out and "no json in" in err
    status, out, _ = shell(verify.main, f"shards={folder}")
    assert status == 2 and "1 changed since it was indexed" in out


def test_a_corrupt_shard_is_named_and_may_be_left_out(shell: Shell, folder: Path) -> None:
    (folder / "00001.tar").write_bytes(b"<html>")
    status, out, err = shell(index.main, f"shards={folder}")
    assert status == 2 and err.splitlines()[-1].startswith("error: 1 of 3 shards are corrupt")
    assert re.search(r"00001.tar .* at byte 0", out) and not (folder / "manifest.npy").exists()
    status, out, _ = shell(index.main, f"shards={folder}", "leave_out=true")
    assert status == 0 and open_shards(str(folder)).counts.tolist() == [3, 0, 1]


def test_verify_reports_what_changed(shell: Shell, folder: Path, tmp_path: Path) -> None:
    status, out, _ = shell(verify.main, f"shards={folder}")
    assert status == 0 and out.startswith("7 samples in 3 shards") and out.endswith("no errors\n")
    with open(folder / "00002.tar", "rb+") as file:
        file.seek(520)
        file.write(b"\xff")
    status, out, err = shell(verify.main, f"shards={folder}", f"out={tmp_path}/report.json")
    assert status == 2 and "1 changed since it was indexed:\n    sample number 0 of" in out
    assert err.splitlines()[-1].startswith(f"error: 1 errors in {folder}")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["samples"] == 7 and "00002.tar" in report["changed since it was indexed"][0]
