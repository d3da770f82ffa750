"""A table of image paths and captions: CSV, JSON lines or Parquet."""

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet

from ldm.data.sources.record import Record, SkippedRecord
from ldm.errors import UserError


@dataclass
class Table:
    """One row per image; paths are relative to the table's folder, all other columns become metadata."""

    path: str
    path_column: str = "path"
    caption_column: str = "caption"

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows, read on first use."""
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise UserError(
                f"there is no table {self.path}: give a .csv, .jsonl or .parquet with source.path=FILE"
            )
        rows = _read_rows(file)
        columns = set().union(*rows)
        for name, column in (("path_column", self.path_column), ("caption_column", self.caption_column)):
            if column not in columns:
                raise UserError(
                    f"{self.path} has no column '{column}', only {', '.join(sorted(columns)) or 'no rows'}: "
                    f"set source.{name}=COLUMN"
                )
        return rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Record:
        fields = dict(self.rows[row])
        path, caption = fields.pop(self.path_column, None), fields.pop(self.caption_column, None)
        if not isinstance(path, str):
            raise SkippedRecord("without a path", f"row {row}")
        if not isinstance(caption, str):
            raise SkippedRecord("without a caption", path)
        file = Path(self.path).expanduser().parent / path
        if not file.is_file():
            raise SkippedRecord("missing", path)
        return Record(file.read_bytes(), caption, {"name": path, **fields})


def _read_rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".csv":
        with open(file, encoding="utf-8-sig", newline="") as lines:
            return list(csv.DictReader(lines))
    if file.suffix == ".jsonl":
        return _read_json_lines(file)
    if file.suffix == ".parquet":
        return pyarrow.parquet.read_table(file).to_pylist()
    raise UserError(f"{file} is not a .csv, .jsonl or .parquet: save the table as one of these")


def _read_json_lines(file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(file.read_text("utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"line {number} of {file} is not a JSON object ({error}): fix or remove it"
            ) from error
    return rows
