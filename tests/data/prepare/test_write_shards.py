import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.fields.decode import decode
from ldm.data.prepare.write_shards import write_shard, write_shards
from ldm.data.shards.index import read_index
from ldm.data.shards.reader import open_shards
from ldm.data.sources import Record, SkippedRecord
from ldm.errors import UserError


def photograph(width: int, height: int, format: str = "JPEG") -> bytes:
    file = BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, format)
    return file.getvalue()


@dataclass
class PlainImages(Sequence[Record]):
    """Images of one colour each; every third is skipped, and reading `interrupt_at` is a Ctrl-C."""

    count: int
    interrupt_at: int = -1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Record:
        if row == self.interrupt_at:
            raise KeyboardInterrupt
        if row % 3 == 2:
            raise SkippedRecord("refused", f"number {row}")
        return Record(
            Image.new("RGB", (20, 16), (row, 0, 0)), f"image {row}", {"name": f"{row}", "score": row / 2}
        )


def content(path: Path) -> bytes:
    """Return the bytes of a file; of an index, without the time at which its shard was written."""
    index = read_index(path) if path.suffix == ".index" else None
    return path.read_bytes() if index is None else index.hash + index.rows.tobytes()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: content(path) for path in sorted(folder.iterdir())}


def test_packed_samples_are_read_back(tmp_path: Path) -> None:
    report = write_shards(PlainImages(8), tmp_path, shard_size=3)
    assert report.packed == 6 and report.skipped == {"refused": 2}
    flat = {"of one flat colour": ["0", "1", "3", "4", "6"]}
    assert report.names == {"refused": ["number 2", "number 5"], **flat}
    shards = open_shards(str(tmp_path))
    assert shards.counts.tolist() == [2, 2, 2]
    shard = shards[1]
    assert [shard.sample(row).key for row in range(2)] == ["000010000", "000010001"]
    assert shard.sample(1).read("txt") == b"image 4"
    assert np.asarray(decode(shard.sample(1).read("png")))[0, 0].tolist() == [4, 0, 0]
    assert json.loads(shard.sample(1).read("json")) == {
        **{"key": "000010001", "caption": "image 4", "name": "4", "score": 2.0},
        **{"width": 20, "height": 16, "original_width": 20, "original_height": 16},
    }
    with tarfile.open(shards.paths[0]) as tar:
        assert tar.getnames()[:3] == ["000000000.json", "000000000.png", "000000000.txt"]
    assert json.loads((tmp_path / "report.json").read_text())["skipped"] == {"refused": 2}


def test_files_are_kept_unless_they_must_change(tmp_path: Path) -> None:
    files = [photograph(40, 30), photograph(30, 90, "PNG"), photograph(20, 15), photograph(30, 24, "BMP")]
    source = [Record(data, "a gradient") for data in files]
    write_shards(source, tmp_path / "kept")
    shard = open_shards(str(tmp_path / "kept"))[0]
    assert [shard.sample(row).read(kind) for row, kind in enumerate(("jpg", "png", "jpg"))] == files[:3]
    assert decode(shard.sample(3).read("jpg")).size == (30, 24)

    write_shards(source, tmp_path / "reduced", size=24)
    shard = open_shards(str(tmp_path / "reduced"))[0]
    assert [decode(shard.sample(row).read("jpg")).size for row in range(4)] == [
        (32, 24),
        (24, 72),
        (20, 15),
        (30, 24),
    ]
    assert shard.sample(2).read("jpg") == files[2]
    metadata = json.loads(shard.sample(0).read("json"))
    assert (metadata["width"], metadata["original_width"]) == (32, 40)

    write_shards(source, tmp_path / "png", format="png")
    shard = open_shards(str(tmp_path / "png"))[0]
    assert set(shard.sample(1).members) == {"json", "png", "txt"} and shard.sample(1).read("png") == files[1]


def test_skipped_records_are_reported(tmp_path: Path) -> None:
    complete = photograph(40, 30)
    source = [
        Record(complete, " a gradient\n"),
        Record(complete[:-100], "cut", {"name": "cut.jpg"}),
        Record(b"<html>", "no image", {"name": "page.jpg"}),
        Record(complete, "  ", {"name": "uncaptioned.jpg"}),
    ]
    report = write_shards(source, tmp_path)
    assert report.packed == 1 and report.skipped == {"unreadable": 2, "with an empty caption": 1}
    assert str(report).splitlines()[0] == "packed 1, skipped 3"
    assert "1 with an empty caption: uncaptioned.jpg" in str(report)
    assert "cut.jpg (ValueError: Premature end of JPEG file)" in str(report)
    assert open_shards(str(tmp_path))[0].sample(0).read("txt") == b"a gradient"


def test_an_interrupted_run_continues_to_the_same_files(tmp_path: Path) -> None:
    straight, interrupted = tmp_path / "straight", tmp_path / "interrupted"
    write_shards(PlainImages(11), straight, shard_size=3)
    source = PlainImages(11, interrupt_at=7)
    with pytest.raises(KeyboardInterrupt):
        write_shards(source, interrupted, shard_size=3)
    assert [name for name in files(interrupted) if "tar" in name] == ["00000.tar", "00001.tar"]
    first = (interrupted / "00000.tar").stat().st_ino
    source.interrupt_at = -1
    (interrupted / "pack.json").write_text((straight / "pack.json").read_text())  # without interrupt_at=7
    report = write_shards(source, interrupted, shard_size=3)
    assert files(interrupted) == files(straight)
    assert report.packed == 8 and report.skipped == {"refused": 3}
    assert (interrupted / "00000.tar").stat().st_ino == first  # kept, not written again


def test_a_corrupt_or_foreign_shard_is_written_again(tmp_path: Path) -> None:
    write_shards(PlainImages(6), tmp_path, shard_size=3)
    before = files(tmp_path)
    (tmp_path / "00000.tar").write_bytes(b"half")
    write_shard(tmp_path / "00001.tar", [])
    write_shards(PlainImages(6), tmp_path, shard_size=3)
    assert files(tmp_path) == before


def test_a_shard_without_its_statistics_is_written_again(tmp_path: Path) -> None:
    write_shards(PlainImages(6), tmp_path, shard_size=3)
    before = files(tmp_path)
    (tmp_path / "00001_stats.json").unlink()
    (tmp_path / "00001.tar").write_bytes(b"half")
    (tmp_path / ".00002.tar.99.tmp").write_bytes(b"from a killed run")
    write_shards(PlainImages(6), tmp_path, shard_size=3)
    assert files(tmp_path) == before


def test_other_settings_in_the_same_folder_are_rejected(tmp_path: Path) -> None:
    write_shards(PlainImages(3), tmp_path)
    with pytest.raises(UserError, match="was packed with size=null, not 64: choose another out="):
        write_shards(PlainImages(3), tmp_path, size=64)
    with pytest.raises(UserError, match=r"source=PlainImages\(count=3, .*not PlainImages\(count=4, "):
        write_shards(PlainImages(4), tmp_path)
    (tmp_path / "pack.json").unlink()
    with pytest.raises(UserError, match="holds shards .*choose another out="):
        write_shards(PlainImages(3), tmp_path)


def test_an_empty_source_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no records"):
        write_shards([], tmp_path)
