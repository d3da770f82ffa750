import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ldm.data.sources import FileSource, SkippedRecord
from ldm.data.sources.table import Table
from ldm.data.sources.text import NOT_UTF8
from ldm.errors import UserError

CSV = '\ufeffpath,caption,score\nimages/a.jpg,"a cat, asleep",3\nmissing.jpg,gone,1\n'
JSONL = """
{"path": "images/a.jpg", "caption": "a cat, asleep", "score": "3"}

{"path": "missing.jpg", "caption": "gone"}
"""


def skipped(rows: Table, row: int) -> tuple[str, str]:
    with pytest.raises(SkippedRecord) as error:
        rows[row]
    return error.value.reason, error.value.name


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
    assert rows[0].metadata == {"name": "images/a.jpg", "score": 3 if kind == "csv" else "3"}
    assert skipped(rows, 1) == ("missing", "missing.jpg")


def test_column_names_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    (tmp_path / "t.csv").write_text("file,text\na.jpg,a cat\n")
    assert Table(str(tmp_path / "t.csv"), "file", "text")[0].caption == "a cat"
    with pytest.raises(UserError, match="no column 'path', only file, text.*source.path_column=COLUMN"):
        len(Table(str(tmp_path / "t.csv")))


def test_a_row_without_caption_or_path_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "a.jpg", "caption": null}\n{"caption": "b"}\n')
    rows = Table(str(tmp_path / "t.jsonl"))
    assert skipped(rows, 0) == ("without a caption", "a.jpg") and skipped(rows, 1) == (
        "without a path",
        "row 1",
    )


def test_a_table_that_cannot_be_read_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "a"}\n{"path"\n')
    (tmp_path / "t.xlsx").write_text("")
    with pytest.raises(UserError, match=r"line 2 of .*t.jsonl is not a JSON object"):
        len(Table(str(tmp_path / "t.jsonl")))
    with pytest.raises(UserError, match=r"t.xlsx is not a .csv, .tsv, .jsonl, .ndjson, .json or .parquet"):
        len(Table(str(tmp_path / "t.xlsx")))
    with pytest.raises(UserError, match="no table .*t.csv"):
        len(Table(str(tmp_path / "t.csv")))


def lines(folder: Path, *rows: dict) -> Table:
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Table(str(folder / "t.jsonl"))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("https://example.com/a.jpg", "given by a URL (download them first, e.g. with img2dataset)"),
        ("s3://bucket/a.jpg", "given by a URL (download them first, e.g. with img2dataset)"),
        ("x" * 300 + ".jpg", "unreadable"),
        ("x/" * 3000 + "a.jpg", "unreadable"),
        (".", "unreadable"),
        ("", "without a path"),
        (5, "without a path"),
        (None, "without a path"),
        ("a\0.jpg", "missing"),
        ("b.jpg", "missing"),
        ("C:\\images\\a.jpg", "missing"),
        ("\ud800.jpg", NOT_UTF8),
    ],
)
def test_a_path_that_leads_to_no_file_costs_its_row(tmp_path: Path, path: object, reason: str) -> None:
    rows = lines(tmp_path, {"path": path, "caption": "a cat"}, {"path": "t.jsonl", "caption": "a dog"})
    assert skipped(rows, 0)[0] == reason
    assert rows.version(0) and rows[1].caption == "a dog"


def test_paths_of_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "d").mkdir()
    for name in ("d/a.jpg", "back\\slash.jpg"):
        (tmp_path / name).write_text(name)
    paths = [
        f"{tmp_path}/d/a.jpg",
        "~/d/a.jpg",
        "d\\a.jpg",
        ".\\d\\a.jpg",
        "./d/../d/a.jpg",
        "back\\slash.jpg",
    ]
    rows = lines(tmp_path / "d" / "..", *({"path": path, "caption": "a"} for path in paths))
    assert [rows[row].image for row in range(6)] == [b"d/a.jpg"] * 5 + [b"back\\slash.jpg"]
    assert [rows[row].metadata["name"] for row in range(6)] == paths


def test_columns_that_pack_writes_itself_are_renamed(tmp_path: Path) -> None:
    fields = {"width": 4000, "height": 3000, "key": "k", "name": "n", "sha256": "s", "status": "success"}
    rows = lines(tmp_path, {"path": "t.jsonl", "caption": "a", **fields, "original_width": 8, "exif": "{}"})
    assert rows[0].metadata == {
        **{"name": "t.jsonl", "source_width": 4000, "source_height": 3000, "source_key": "k"},
        **{"source_name": "n", "sha256": "s", "status": "success", "source_original_width": 8, "exif": "{}"},
    }


def test_the_caption_column_may_be_another_beside_one_named_caption(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,caption,long\nt.csv,short,a long one\n")
    record = Table(str(tmp_path / "t.csv"), caption_column="long")[0]
    assert record.caption == "a long one" and record.metadata == {"name": "t.csv", "source_caption": "short"}


def test_captions_are_cleaned_and_bad_ones_cost_their_row(tmp_path: Path) -> None:
    texts = ["\ufeffone\r\ntwo\rthree\0", "bad \ud800", "paired \ud83d\ude00", 5, None, ["a"]]
    rows = lines(tmp_path, *({"path": "t.jsonl", "caption": text} for text in texts))
    assert rows[0].caption == "one\ntwo\nthree" and rows[2].caption == "paired \U0001f600"
    assert skipped(rows, 1) == (NOT_UTF8, "t.jsonl")
    assert [skipped(rows, row)[0] for row in (3, 4, 5)] == ["without a caption"] * 3


def test_a_table_in_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes("path,caption\nt.csv,grün\nt.csv,red\n".encode("latin-1"))
    assert skipped(Table(str(file)), 0) == (NOT_UTF8, "t.csv") and Table(str(file))[1].caption == "red"
    assert Table(str(file), encoding="latin-1")[0].caption == "grün"
    file.write_bytes("path,caption\r\nt.csv,緑\r\n".encode("utf-16-le"))
    with pytest.raises(
        UserError, match="t.csv is not utf-8: NUL bytes as in UTF-16: set source.encoding=NAME"
    ):
        len(Table(str(file)))
    assert Table(str(file), encoding="utf-16-le")[0].caption == "緑"
    with pytest.raises(UserError, match="source.encoding=ansi8 is no encoding"):
        Table(str(file), encoding="ansi8")


@pytest.mark.parametrize("content", ["", "path,caption\n", "\n\n", "path,caption\n,\n"])
def test_a_table_without_rows_is_rejected(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.CSV").write_text(content)
    with pytest.raises(UserError, match="t.CSV has no rows: its first line must name the columns"):
        len(Table(str(tmp_path / "t.CSV")))


def test_a_header_that_is_no_text_is_printable(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"PK\x03\x04\xff\xfe,b\nc,d\n")
    with pytest.raises(UserError, match="no column 'path', only ") as error:
        len(Table(str(tmp_path / "t.csv")))
    assert str(error.value).encode()


def test_the_version_changes_with_the_row_and_its_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("a")
    row = {"path": "a.jpg", "caption": "a"}
    versions = [lines(tmp_path, row).version(0)]
    assert lines(tmp_path, row, {"path": "b.jpg"}).version(0) == versions[0]
    for changed in ({**row, "caption": "b"}, {**row, "score": 1}, {**row, "score": 2}):
        versions.append(lines(tmp_path, changed).version(0))
    os.utime(tmp_path / "a.jpg", ns=(0, 1))
    versions.append(lines(tmp_path, row).version(0))
    (tmp_path / "a.jpg").unlink()
    versions.append(lines(tmp_path, row).version(0))
    assert len(set(versions)) == 6 and isinstance(lines(tmp_path, row), FileSource)


def test_columns_of_bytes_are_left_out_and_named(tmp_path: Path) -> None:
    columns = {"path": ["t.parquet"], "caption": ["a"], "image": [b"png"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    rows = Table(str(tmp_path / "t.parquet"))
    assert rows[0].metadata == {"name": "t.parquet"} and rows.ignored == {"columns of bytes": ["image"]}
