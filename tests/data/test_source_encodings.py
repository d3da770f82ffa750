"""Captions and tables in every encoding, with every line end, through pack (docs/guide/packing.md)."""

import codecs
import csv
import json
from io import StringIO
from itertools import product
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from ldm.data.prepare.pack_report import PackReport
from ldm.data.prepare.write_shards import write_shards
from ldm.data.shards.reader import open_shards
from ldm.data.sources import Source
from ldm.data.sources.folder import Folder
from ldm.data.sources.table import Table
from ldm.data.sources.text import NOT_UTF8
from ldm.errors import UserError

UNICODE = "ein grüner Kreis, “rund”; 緑 😀\nzweite Zeile"
ENCODINGS = {
    "utf-8": (b"", UNICODE),
    "utf-8 with a mark": (codecs.BOM_UTF8, UNICODE),
    "utf-16-le with a mark": (codecs.BOM_UTF16_LE, UNICODE),
    "utf-16-be with a mark": (codecs.BOM_UTF16_BE, UNICODE),
    "utf-32-le with a mark": (codecs.BOM_UTF32_LE, UNICODE),
    "utf-32-be with a mark": (codecs.BOM_UTF32_BE, UNICODE),
    "utf-16-le": (b"", UNICODE),
    "utf-16-be": (b"", UNICODE),
    "latin-1": (b"", "größer, ½; «rund»\nzweite Zeile"),
    "cp1252": (b"", "10 €, “größer”; œuf\nzweite Zeile"),
    "shift_jis": (b"", "赤い円, ソ表能; 青\n二行目"),  # their second bytes are backslashes
    "gb18030": (b"", "红色的圆, 蓝; 😀\n第二行"),
}
"""(byte order mark, caption of two lines)."""
NEEDS_NO_OPTION = [name for name in ENCODINGS if name.startswith("utf-8") or "mark" in name]
LINE_ENDS = {"LF": "\n", "CRLF": "\r\n", "CR": "\r"}
DELIMITERS = {"csv": ",", "semicolon.csv": ";", "tsv": "\t"}
KINDS = ("txt", *DELIMITERS, "jsonl", "json")
PLAIN = "a plain cat"

ALL = list(product(KINDS, ENCODINGS, LINE_ENDS))
SAMPLE = [
    *(("txt", encoding, "CRLF") for encoding in ENCODINGS),
    *((kind, "cp1252", "LF") for kind in KINDS if kind != "txt"),
    *(("csv", "utf-16-le with a mark", end) for end in LINE_ENDS),
    ("jsonl", "utf-8 with a mark", "CR"),
]


def write_table(kind: str, captions: list[str]) -> str:
    rows = [{"path": f"{number}.png", "caption": caption} for number, caption in enumerate(captions)]
    if kind == "json":
        return json.dumps(rows, ensure_ascii=False, indent=1)
    if kind == "jsonl":
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    text = StringIO(newline="")
    writer = csv.DictWriter(text, ["path", "caption"], delimiter=DELIMITERS[kind], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_source(folder: Path, kind: str, name: str, end: str, option: bool) -> Source:
    """Write two images, captioned in the encoding `name` and by PLAIN, and return their source."""
    mark, caption = ENCODINGS[name]
    encoding = name.split()[0]
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (2, 1), (number, 0, 0)).save(folder / f"{number}.png")
    texts = [caption, PLAIN] if kind == "txt" else [write_table(kind, [caption, PLAIN])]
    for number, text in enumerate(texts):
        data = mark + text.replace("\n", LINE_ENDS[end]).encode(encoding)
        (folder / (f"{number}.txt" if kind == "txt" else f"t.{kind}")).write_bytes(data)
    chosen = encoding if option else None
    return Folder(str(folder), chosen) if kind == "txt" else Table(str(folder / f"t.{kind}"), encoding=chosen)


def pack(source: Source, out: Path) -> tuple[list[str], PackReport]:
    report = write_shards(source, out)
    shard = open_shards(str(out))[0]
    for row in range(len(shard)):
        json.loads(shard.sample(row).read("json").decode())
    return [shard.sample(row).read("txt").decode() for row in range(len(shard))], report


def check_encoding(folder: Path, kind: str, name: str, end: str) -> None:
    caption = ENCODINGS[name][1]
    source = write_source(folder / "named", kind, name, end, option=True)
    assert pack(source, folder / "named_shards")[0] == [caption, PLAIN]
    if name in NEEDS_NO_OPTION:
        source = write_source(folder / "unnamed", kind, name, end, option=False)
        assert pack(source, folder / "unnamed_shards")[0] == [caption, PLAIN]


@pytest.mark.parametrize(("kind", "name", "end"), SAMPLE)
def test_a_caption_is_packed_as_it_was_written(tmp_path: Path, kind: str, name: str, end: str) -> None:
    check_encoding(tmp_path, kind, name, end)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "end"), ALL)
def test_every_encoding_of_every_kind_of_text(tmp_path: Path, kind: str, name: str, end: str) -> None:
    check_encoding(tmp_path, kind, name, end)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["latin-1", "cp1252", "shift_jis"])
def test_text_in_an_encoding_that_is_not_stated_costs_its_row(tmp_path: Path, kind: str, name: str) -> None:
    source = write_source(tmp_path / "in", kind, name, "LF", option=False)
    if name == "shift_jis" and kind in ("json", "jsonl"):  # JSON reads backslashes where characters are
        with pytest.raises(UserError, match=": set source.encoding=NAME, or save it as UTF-8$"):
            len(source)
        return
    captions, report = pack(source, tmp_path / "out")
    assert captions == [PLAIN] and report.skipped == {NOT_UTF8: 1}
    assert report.names[NOT_UTF8][0].startswith("0.png")


def test_parquet_needs_no_encoding(tmp_path: Path) -> None:
    Image.new("RGB", (2, 1), "red").save(tmp_path / "a.png")
    texts = [text for _, text in ENCODINGS.values()]
    columns = {"path": ["a.png"] * len(texts), "caption": texts}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    assert pack(Table(str(tmp_path / "t.parquet")), tmp_path / "out")[0] == texts
