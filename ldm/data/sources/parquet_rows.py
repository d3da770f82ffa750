"""Rows of a Parquet file, as Python values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from pyarrow import types

from ldm.errors import UserError

BYTES = "columns of bytes"
UNREADABLE = "columns of a type that Python lacks"


def read_parquet(
    file: Path, text_columns: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Return the rows of a table, and the names of the columns that are left out, by reason.

    Columns that hold bytes anywhere, such as images, are not read, except for `text_columns`.
    """
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            schema = table.schema_arrow
            if duplicates := {name for name in schema.names if schema.names.count(name) > 1}:
                raise UserError(f"{file} has two columns '{min(duplicates)}': rename or remove one")
            skipped = {f.name for f in schema if _holds_bytes(f.type)} - {*text_columns}
            columns = table.read([name for name in schema.names if name not in skipped])
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{file} cannot be read as Parquet ({' '.join(str(error).split())}): write it again"
        ) from error
    values = {
        name: _to_list(column) for name, column in zip(columns.column_names, columns.columns, strict=True)
    }
    read = {name: column for name, column in values.items() if column is not None}
    left_out = {BYTES: sorted(skipped), UNREADABLE: sorted({*values} - {*read})}
    rows = [dict(zip(read, row, strict=True)) for row in zip(*read.values(), strict=True)]
    return rows, {reason: names for reason, names in left_out.items() if names}


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    if types.is_nested(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def _to_list(column: pyarrow.ChunkedArray) -> list[Any] | None:
    """Return the values of a column, times in microseconds; None if Python has no such type."""
    try:
        return _in_microseconds(column).to_pylist()
    except UnicodeDecodeError:  # strings that are not UTF-8: their rows alone are skipped
        data = column.cast(pyarrow.large_binary()).to_pylist()
        return [None if text is None else text.decode("utf-8", "surrogateescape") for text in data]
    except Exception:  # errors of any type, such as dates after the year 9999
        return None


def _in_microseconds(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Convert times in nanoseconds, for which Python has no type."""
    kind = column.type
    if types.is_timestamp(kind) and kind.unit == "ns":
        return column.cast(pyarrow.timestamp("us", kind.tz), safe=False)
    if types.is_duration(kind) and kind.unit == "ns":
        return column.cast(pyarrow.duration("us"), safe=False)
    if types.is_time64(kind) and kind.unit == "ns":
        return column.cast(pyarrow.time64("us"), safe=False)
    return column
