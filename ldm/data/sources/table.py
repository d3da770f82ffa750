"""A table of image paths and captions: CSV, TSV, JSON, JSON lines or Parquet."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any

from ldm.data.sources.csv_rows import read_csv
from ldm.data.sources.files import file_version, read_file
from ldm.data.sources.json_rows import read_json_lines, read_json_list
from ldm.data.sources.parquet_rows import read_parquet
from ldm.data.sources.record import Record, SkippedRecord, source_metadata
from ldm.data.sources.text import (
    NOT_UTF8,
    WrongEncoding,
    check_encoding,
    clean_text,
    decode_text,
    is_unicode,
    printable,
)
from ldm.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass
class Table:
    """One row per image; paths are relative to the table's folder, all other columns become metadata.

    Args:
        encoding: of a table that is text and has no byte order mark; None is UTF-8.
    """

    path: str
    path_column: str = "path"
    caption_column: str = "caption"
    encoding: str | None = None

    def __post_init__(self) -> None:
        check_encoding(self.encoding)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows, read on first use."""
        return self._contents[0]

    @property
    def ignored(self) -> Mapping[str, Sequence[str]]:
        """Names of the columns that are left out, by reason."""
        return self._contents[1]

    @cached_property
    def _contents(self) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise UserError(
                f"there is no table {self.path}: give a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} with "
                "source.path=FILE"
            )
        rows, ignored = self._read(file)
        if not rows:
            raise UserError(
                f"{self.path} has no rows: its first line must name the columns, and each other one hold the "
                f"{self.path_column} and {self.caption_column} of an image"
            )
        columns = {printable(name) for name in set[str]().union(*rows)}
        for name, column in (("path_column", self.path_column), ("caption_column", self.caption_column)):
            if column not in columns:
                raise UserError(
                    f"{self.path} has no column '{column}', only {', '.join(sorted(columns))}: set "
                    f"source.{name}=COLUMN"
                )
        return rows, ignored

    def _read(self, file: Path) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
        kind, text_columns = file.suffix.lower(), (self.path_column, self.caption_column)
        if kind not in SUFFIXES:
            raise UserError(
                f"{file} is not a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}: save the table as one of "
                "these"
            )
        if kind == ".parquet":
            return read_parquet(file, text_columns)
        try:  # the rows of bytes that are not in this encoding are skipped later
            text = decode_text(file.read_bytes(), self.encoding, "surrogateescape")
        except WrongEncoding as error:
            raise UserError(f"{file} is {error}: set source.encoding=NAME, or save it as UTF-8") from error
        if kind in (".csv", ".tsv"):
            return read_csv(text, str(file), self.path_column, text_columns), {}
        return (read_json_list if kind == ".json" else read_json_lines)(text, str(file)), {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Record:
        fields = dict(self.rows[row])
        path, caption = fields.pop(self.path_column, None), fields.pop(self.caption_column, None)
        if not isinstance(path, str) or not path:
            raise SkippedRecord("without a path", f"row {row}")
        if not isinstance(caption, str):
            raise SkippedRecord("without a caption", path)
        if not is_unicode(path + caption):
            raise SkippedRecord(NOT_UTF8, path)
        if URL.match(path):
            raise SkippedRecord("given by a URL (download them first, e.g. with img2dataset)", path)
        data = read_file(self._locate(path), path)
        return Record(data, clean_text(caption), source_metadata(path, fields))

    def version(self, row: int) -> str:
        """Return the row's cells, and the size and time of its image."""
        fields = self.rows[row]
        path = fields.get(self.path_column)
        state = file_version(self._locate(path)) if isinstance(path, str) else ""
        return f"{printable(repr(fields))}\0{state}\n"

    def _locate(self, path: str) -> Path:
        """Return the file of a path: relative to the table, below ~, or with the separators of Windows."""
        folder = Path(self.path).expanduser().parent
        file = folder / os.path.expanduser(path)
        return file if "\\" not in path or os.path.exists(file) else folder / PureWindowsPath(path).as_posix()
