"""Tables and folders with odd rows through pack: one bad row costs that row (docs/guide/packing.md)."""

import json
import math
import os
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from ldm.data.prepare.pack_report import PackReport
from ldm.data.prepare.write_shards import LEFT_OUT, write_shards
from ldm.data.shards.reader import open_shards
from ldm.data.sources import Source
from ldm.data.sources.folder import Folder
from ldm.data.sources.listing import FORMATS
from ldm.data.sources.table import Table
from ldm.data.sources.text import NOT_UTF8


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b"):
        Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(folder / f"{name}.jpg")
        (folder / f"{name}.txt").write_text(f"image {name}")
    return folder


def pack(source: Source, out: Path) -> tuple[dict[str, str], dict[str, Any], PackReport]:
    """Return the caption of every image that was packed, the json of the first, and the report."""
    report = write_shards(source, out)
    shard = open_shards(str(out))[0]
    samples = [shard.sample(row) for row in range(len(shard))]
    metadata = [json.loads(sample.read("json"), parse_constant=pytest.fail) for sample in samples]
    captions = [sample.read("txt").decode() for sample in samples]
    report_file = json.loads((out / "report.json").read_text("utf-8"))
    assert report_file["skipped"] == report.skipped and report_file["names"] == report.names
    return dict(zip((m["name"] for m in metadata), captions, strict=True)), metadata[0], report


def pack_table(images: Path, name: str, data: bytes) -> tuple[dict[str, str], dict[str, Any], PackReport]:
    (images / name).write_bytes(data)
    return pack(Table(str(images / name)), images.parent / "out")


BAD_ROWS = {
    "a surrogate": (
        "t.jsonl",
        b'{"path": "a.jpg", "caption": "\\ud800"}\n{"path": "b.jpg", "caption": "ok"}',
    ),
    "a surrogate in another column": (
        "t.jsonl",
        b'{"path": "a.jpg", "caption": "a", "x": ["\\ud800"]}\n{"path": "b.jpg", "caption": "ok"}',
    ),
    "latin-1": ("t.csv", "path,caption\na.jpg,grün\nb.jpg,ok\n".encode("latin-1")),
    "latin-1 in another column": ("t.csv", "path,caption,x\na.jpg,a,grün\nb.jpg,ok,-\n".encode("latin-1")),
    "a long path": ("t.csv", b"path,caption\n" + b"x" * 300 + b".jpg,long\nb.jpg,ok\n"),
    "a folder": ("t.csv", b"path,caption\n.,here\nb.jpg,ok\n"),
    "a URL": ("t.csv", b"path,caption\nhttps://example.com/a.jpg,far\nb.jpg,ok\n"),
    "no image": ("t.csv", b"path,caption\nt.csv,table\nb.jpg,ok\n"),
    "no path": ("t.csv", b"path,caption\n,nothing\nb.jpg,ok\n"),
    "an empty caption": ("t.csv", b"path,caption\na.jpg,\nb.jpg,ok\n"),
    "a caption of NUL characters": ("t.csv", b"path,caption\na.jpg,\0\0\nb.jpg,ok\n"),
    "a path with NUL": (
        "t.jsonl",
        b'{"path": "\\u0000", "caption": "a"}\n{"path": "b.jpg", "caption": "ok"}',
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_one_bad_row_costs_that_row(images: Path, name: str) -> None:
    captions, _, report = pack_table(images, *BAD_ROWS[name])
    assert captions == {"b.jpg": "ok"} and sum(report.skipped.values()) == 1
    assert str(report).encode()


def test_a_line_separator_in_a_caption_of_json_lines(images: Path) -> None:
    text = '{"path": "a.jpg", "caption": "one\u2028two\x85"}\n{"path": "b.jpg", "caption": "ok"}'
    assert pack_table(images, "t.jsonl", text.encode())[0] == {"a.jpg": "one\u2028two", "b.jpg": "ok"}


def test_a_long_caption(images: Path) -> None:
    captions, _, _ = pack_table(images, "t.csv", b"path;caption\na.jpg;" + b"x" * 180_000 + b"\n")
    assert len(captions["a.jpg"]) == 180_000


def test_values_of_parquet_that_json_lacks(images: Path) -> None:
    columns = {
        "path": ["a.jpg", "b.jpg"],
        "caption": ["a", "b"],
        "when": [datetime(2020, 1, 2), None],
        "infinite": [math.inf, 1.0],
        "nan": [[0.0, math.nan], [1.0]],
        "thumbnail": [b"png", b"png"],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), images / "t.parquet")
    captions, metadata, report = pack(Table(str(images / "t.parquet")), images.parent / "out")
    assert captions == {"a.jpg": "a", "b.jpg": "b"} and metadata["when"] == "2020-01-02T00:00:00"
    assert not {"infinite", "nan", "thumbnail"} & set(metadata)
    assert report.notes == {LEFT_OUT: 1} and report.names[LEFT_OUT] == ["a.jpg (infinite, nan)"]
    assert report.ignored == {"columns of bytes": 1}


def test_a_file_name_that_is_not_utf8(images: Path) -> None:
    folder = os.fsencode(images)
    for suffix in (b".jpg", b".txt"):
        os.rename(os.path.join(folder, b"a" + suffix), os.path.join(folder, b"caf\xe9" + suffix))
    with open(os.path.join(folder, b"\xe9.jpg"), "wb"):
        pass
    captions, _, report = pack(Folder(str(images)), images.parent / "out")
    assert captions == {"b.jpg": "image b", r"caf\udce9.jpg": "image a"}
    assert report.names == {"without a caption file (.txt)": [r"\udce9.jpg"]}


def test_a_caption_that_is_not_utf8_costs_its_image(images: Path) -> None:
    (images / "a.txt").write_bytes("grün".encode("latin-1"))
    captions, _, report = pack(Folder(str(images)), images.parent / "out")
    assert captions == {"b.jpg": "image b"} and report.skipped == {NOT_UTF8: 1}


def test_a_json_does_not_replace_what_pack_measured(images: Path) -> None:
    fields = {"width": 1, "height": 2, "caption": "other", "key": "k", "name": "n", "score": math.nan}
    (images / "a.json").write_text(json.dumps(fields))
    captions, metadata, report = pack(Folder(str(images)), images.parent / "out")
    assert captions == {"a.jpg": "image a", "b.jpg": "image b"}
    assert metadata == {
        **{"key": "000000000", "caption": "image a", "name": "a.jpg"},
        **{"width": 40, "height": 30, "original_width": 40, "original_height": 30},
        **{"source_width": 1, "source_height": 2, "source_caption": "other", "source_key": "k"},
        "source_name": "n",
    }
    assert report.names[LEFT_OUT] == ["a.jpg (score)"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_of_every_listed_format_is_packed(tmp_path: Path, format: str) -> None:
    if format not in Image.SAVE:
        pytest.skip(f"this Pillow cannot write {format}")
    file = BytesIO()
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(file, format)
    suffix = next(s for s, kind in Image.registered_extensions().items() if kind == format)
    (tmp_path / f"a{suffix.upper()}").write_bytes(file.getvalue())
    (tmp_path / "a.TXT").write_text("a gradient")
    captions, metadata, _ = pack(Folder(str(tmp_path)), tmp_path / "out")
    assert list(captions.values()) == ["a gradient"] and metadata["width"] == 40
