import json
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.reader import open_shards
from ldm.data.shards import write_shards
from ldm.data.sources.folder import Folder
from ldm.data.sources.table import Table
from tests.data.test_shards import photograph


def labels(width: int, height: int) -> bytes:
    """A map of four labels, one a quarter."""
    file = BytesIO()
    y, x = np.mgrid[:height, :width]
    Image.fromarray((2 * (2 * y // height) + 2 * x // width).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def pictures(folder: Path) -> Path:
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(photograph(40, 20))
    (folder / "cat.txt").write_text("a cat")
    (folder / "cat.cls").write_text("7")
    (folder / "cat.seg.png").write_bytes(labels(40, 20))
    (folder / "cat.json").write_text(json.dumps({"key": "x", "width": 9, "boxes": [[1, 0, 0, 1, 1]]}))
    return folder


def test_what_lies_beside_a_picture_is_packed_and_no_picture_itself(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in")
    assert len(Folder(str(folder))) == 1
    assert write_shards(Folder(str(folder)), tmp_path / "out").packed == 1
    sample = open_shards(str(tmp_path / "out"))[0].sample(0)
    known = json.loads(sample.read("json"))
    assert sample.read("cls") == b"7" and sample.read("seg.png") == labels(40, 20)
    assert known["key"] == sample.key and known["boxes"] == [[1, 0, 0, 1, 1]]
    assert (known["width"], known["height"]) == (40, 20)


def test_a_table_finds_them_too(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in")
    (folder / "all.csv").write_text("path,caption\ncat.jpg,a cat\n")
    record = Table(str(folder / "all.csv"))[0]
    assert record.members["cls"] == b"7" and record.metadata["boxes"] == [[1, 0, 0, 1, 1]]


def test_a_map_is_reduced_with_its_picture_and_keeps_its_labels(tmp_path: Path) -> None:
    write_shards(Folder(str(pictures(tmp_path / "in"))), tmp_path / "out", size=10)
    sample = open_shards(str(tmp_path / "out"))[0].sample(0)
    found = np.asarray(Image.open(BytesIO(sample.read("seg.png"))))
    assert found.shape == (10, 20)
    assert [found[y, x] for y in (0, 4, 5, 9) for x in (0, 9, 10, 19)] == [0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2


def test_what_does_not_fit_is_left_out_and_named(tmp_path: Path) -> None:
    changes = {
        "cat.seg.png": (labels(20, 20), "with a .seg.png of another size than the picture"),
        "cat.cls": (b"tabby", "with a .cls that is no number"),
        "cat.json": (b"<html>", "with a .json that is no JSON object"),
        "cat.mask.png": (b"<html>", "unreadable"),
    }
    for number, (file, (data, reason)) in enumerate(changes.items()):
        folder = pictures(tmp_path / f"in{number}")
        (folder / file).write_bytes(data)
        report = write_shards(Folder(str(folder)), tmp_path / f"out{number}")
        assert (report.packed, report.skipped) == (0, {reason: 1})
