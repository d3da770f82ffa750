"""Rows of a CSV file: separated by commas, semicolons or tabs, checked line by line."""

import csv
import json
from collections.abc import Iterator, Sequence
from io import StringIO
from typing import Any, NoReturn

from ldm.errors import UserError

csv.field_size_limit(2**31 - 1)  # the default, 128 KB, is less than a long text
DELIMITERS = (",", ";", "\t")
NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}


def read_csv(text: str, file: str, path_column: str, text_columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a table, `file` in messages; its first line holds the names of the columns.

    The separator is the one with which the first line has a column `path_column`. Columns without a name,
    such as pandas' row numbers, and empty cells are left out. A column whose cells are all numbers, or JSON
    lists and objects, is parsed, except for `text_columns`. Raises UserError for the first line that is not
    as the header says.
    """
    delimiter = _find_delimiter(text, path_column)
    lines = _number_rows(text, delimiter, file)
    header = [name.strip() for name in next(lines, (0, []))[1]]
    for name in header:
        if name and header.count(name) > 1:
            raise UserError(f"{file} has two columns '{name}': rename or remove one")
    rows = list[dict[str, Any]]()
    for line, cells in lines:
        if len(cells) != len(header):
            _refuse_row(len(cells), len(header), f"line {line} of {file}", delimiter)
        named = zip(header, cells, strict=True)
        rows.append({name: cell for name, cell in named if name and (cell or name in text_columns)})
    for name in {*header} - {*text_columns}:
        _parse_column(rows, name)
    return rows


def _refuse_row(cells: int, columns: int, line: str, delimiter: str) -> NoReturn:
    sign = NAMES[delimiter]
    advice = (
        f'put quotes around a text that contains a {sign}, as in "a circle{delimiter} left of a square"'
        if cells > columns
        else "add those that are missing"
    )
    raise UserError(f"{line} has {cells} cell{'s' * (cells != 1)} and the header {columns}: {advice}")


def _find_delimiter(text: str, path_column: str) -> str:
    first = text.lstrip("\n").partition("\n")[0]
    for delimiter in DELIMITERS:
        cells = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
        if path_column in [cell.strip() for cell in cells]:
            return delimiter
    return DELIMITERS[0]


def _number_rows(text: str, delimiter: str, file: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the line where it begins, cells) of every row that is not empty."""
    lines = StringIO(text, newline="\n")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"the row that begins in line {line} of {file} has unbalanced quotes ({error}): close each "
                'quote, and write " inside a quoted text as ""'
            ) from error
        if any(cells):
            yield line, cells


def _parse_column(rows: list[dict[str, Any]], name: str) -> None:
    """Parse the cells of a column if all of them are numbers, lists or objects."""
    try:
        values = [_parse_cell(row[name]) for row in rows if name in row]
    except ValueError:
        return
    for row, value in zip((row for row in rows if name in row), values, strict=True):
        row[name] = value


def _parse_cell(cell: str) -> Any:
    """Return the number, list or object that a cell holds; raise ValueError for any other text."""
    if cell.lower() in ("nan", "inf", "-inf"):
        return float(cell)
    try:
        value = json.loads(cell)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if isinstance(value, str | None):
        raise ValueError("a text")
    return value
