from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ldm.data.sources import SkippedRecord
from ldm.data.sources.table import Table
from ldm.errors import UserError

CSV = '\ufeffpath,caption,score\nimages/a.jpg,"a cat, asleep",3\nmissing.jpg,gone,1\n'
JSONL = """
{"path": "images/a.jpg", "caption": "a cat, asleep", "score": "3"}

{"path": "missing.jpg", "caption": "gone"}
"""


def table(folder: Path, kind: str) -> Table:
    (folder / "images").mkdir()
    (folder / "images" / "a.jpg").write_bytes(b"image")
    path = folder / f"t.{kind}"
    if kind == "parquet":
        rows = {
            "path": ["images/a.jpg", "missing.jpg"],
            "caption": ["a cat, asleep", "gone"],
            "score": ["3", "1"],
        }
        pyarrow.parquet.write_table(pyarrow.table(rows), path)
    else:
        path.write_text(CSV if kind == "csv" else JSONL, "utf-8")
    return Table(str(path))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_row_is_an_image_relative_to_the_table(tmp_path: Path, kind: str) -> None:
    rows = table(tmp_path, kind)
    assert len(rows) == 2
    assert rows[0].image == b"image" and rows[0].caption == "a cat, asleep"
    assert rows[0].metadata == {"name": "images/a.jpg", "score": "3"}
    with pytest.raises(SkippedRecord) as skipped:
        rows[1]
    assert (skipped.value.reason, skipped.value.name) == ("missing", "missing.jpg")


def test_column_names_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    (tmp_path / "t.csv").write_text("file,text\na.jpg,a cat\n")
    assert Table(str(tmp_path / "t.csv"), "file", "text")[0].caption == "a cat"
    with pytest.raises(UserError, match="no column 'path', only file, text.*source.path_column=COLUMN"):
        len(Table(str(tmp_path / "t.csv")))


def test_a_row_without_caption_or_path_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "a.jpg", "caption": null}\n{"caption": "b"}\n')
    rows = Table(str(tmp_path / "t.jsonl"))
    for row, reason in enumerate(("without a caption", "without a path")):
        with pytest.raises(SkippedRecord) as skipped:
            rows[row]
        assert skipped.value.reason == reason


def test_a_table_that_cannot_be_read_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "a"}\n{"path"\n')
    (tmp_path / "t.xlsx").write_text("")
    with pytest.raises(UserError, match=r"line 2 of .*t.jsonl is not a JSON object"):
        len(Table(str(tmp_path / "t.jsonl")))
    with pytest.raises(UserError, match=r"t.xlsx is not a .csv, .jsonl or .parquet"):
        len(Table(str(tmp_path / "t.xlsx")))
    with pytest.raises(UserError, match="no table .*t.csv"):
        len(Table(str(tmp_path / "t.csv")))
