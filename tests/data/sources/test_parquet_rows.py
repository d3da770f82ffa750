import math
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ldm.data.prepare.sample_json import to_json
from ldm.data.sources.parquet_rows import BYTES, UNREADABLE, read_parquet
from ldm.errors import UserError

DAY = datetime(2020, 1, 2, 3, 4, 5, 6)
COLUMNS = {
    "second": (pyarrow.array([DAY], pyarrow.timestamp("s")), "2020-01-02T03:04:05"),
    "micro": (pyarrow.array([DAY], pyarrow.timestamp("us")), "2020-01-02T03:04:05.000006"),
    "nano": (pyarrow.array([1577934245_000006789], pyarrow.timestamp("ns")), "2020-01-02T03:04:05.000006"),
    "utc": (
        pyarrow.array([DAY.replace(tzinfo=timezone.utc)], pyarrow.timestamp("ns", "UTC")),
        "2020-01-02T03:04:05.000006+00:00",
    ),
    "date": (pyarrow.array([date(2020, 1, 2)]), "2020-01-02"),
    "time": (pyarrow.array([5], pyarrow.time64("ns")), "00:00:00"),
    "duration": (pyarrow.array([1_500_000_789], pyarrow.duration("ns")), 1.5),
    "decimal": (pyarrow.array([Decimal("1.25")]), 1.25),
    "float16": (pyarrow.array([1.5], pyarrow.float16()), 1.5),
    "uint64": (pyarrow.array([2**64 - 1], pyarrow.uint64()), 2**64 - 1),
    "bool": (pyarrow.array([True]), True),
    "null": (pyarrow.nulls(1), None),
    "category": (pyarrow.array(["x"]).dictionary_encode(), "x"),
    "large": (pyarrow.array(["y"], pyarrow.large_string()), "y"),
    "list": (pyarrow.array([[[0, 0.5]]]), [[0.0, 0.5]]),
    "struct": (pyarrow.array([{"a": {"b": DAY}}]), {"a": {"b": "2020-01-02T03:04:05.000006"}}),
    "map": (
        pyarrow.array([[("k", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        [["k", 1]],
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_every_type_becomes_json(tmp_path: Path, name: str) -> None:
    column, expected = COLUMNS[name]
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a"], "x": column}), tmp_path / "t.parquet")
    rows, left_out = read_parquet(tmp_path / "t.parquet", ("path",))
    assert to_json(rows) == [{"path": "a", "x": expected}] and not left_out


def test_columns_without_a_value_in_json_are_named(tmp_path: Path) -> None:
    columns = {
        "path": [b"a"],
        "thumbnail": [b"png"],
        "image": [{"bytes": b"png", "path": "a.png"}],
        "views": [[{"view": [b"png"]}]],
        "far": pyarrow.array([10**15], pyarrow.timestamp("ms")),
        "nested": pyarrow.array([[1]], pyarrow.list_(pyarrow.timestamp("ns"))),
        "n": [1],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    rows, left_out = read_parquet(tmp_path / "t.parquet", ("path",))
    assert rows == [{"path": b"a", "n": 1}]
    assert left_out == {BYTES: ["image", "thumbnail", "views"], UNREADABLE: ["far", "nested"]}


def test_a_string_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    strings = pyarrow.array([b"ok", b"caf\xe9", None], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"caption": strings}), tmp_path / "t.parquet")
    rows, left_out = read_parquet(tmp_path / "t.parquet", ())
    assert [row["caption"] for row in rows] == ["ok", "caf\udce9", None] and not left_out


def test_missing_values(tmp_path: Path) -> None:
    columns = {"x": [math.nan, 1.0], "y": [None, "b"], "z": [timedelta(1), None]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    rows, _ = read_parquet(tmp_path / "t.parquet", ())
    assert math.isnan(rows[0].pop("x")) and rows == [
        {"y": None, "z": timedelta(1)},
        {"x": 1.0, "y": "b", "z": None},
    ]


def test_a_file_of_another_kind_is_rejected(tmp_path: Path) -> None:
    for data in (b"", b"path,caption\n", b"PAR1" + bytes(20) + b"PAR1"):
        (tmp_path / "t.parquet").write_bytes(data)
        with pytest.raises(
            UserError, match=r"t.parquet cannot be read as Parquet \([^\n]*\): write it again$"
        ):
            read_parquet(tmp_path / "t.parquet", ())


def test_columns_of_one_name_are_rejected(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], ["score", "score"])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match="two columns 'score': rename or remove one"):
        read_parquet(tmp_path / "t.parquet", ())
