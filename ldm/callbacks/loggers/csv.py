"""Metrics in one CSV file per run.

Not Lightning's CSVLogger: that one starts a new folder `version_N` with every process and writes rows in
blocks. Here a resumed run continues its file and replaces the rows that it trains again, and each row is on
disk as soon as it is logged.
"""

import csv
import errno
import io
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ldm.atomic import explain_write_error, write_file
from ldm.errors import UserError, WriteError

LOG = logging.getLogger(__name__)
STEP = "step"


class CSVLogger(Logger):
    """Write a row per logged step to `path`.

    Rows that cannot be written, as on a full disk, are kept in memory and written with the next row.
    """

    name = version = None

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self.columns: list[str] = []
        self._unwritten: list[dict[str, Any]] = []

    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Check the file that a resumed run continues; the config is in the run's folder."""
        read_rows(self.path)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one row; new names become new columns."""
        is_late = bool(self._unwritten)
        self._unwritten.append({STEP: step, **metrics})
        try:
            self._flush()
        except OSError as error:
            if not is_late:
                LOG.warning("%s: its rows are kept in memory until it can be", self._explain(error))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that are left; warn if they are lost."""
        try:
            self._flush()
        except OSError as error:
            lost, first = len(self._unwritten), self._unwritten[0][STEP]
            LOG.warning("%s: it lacks %d row(s), from step %d on", self._explain(error), lost, first)

    def _explain(self, error: OSError) -> str:
        problem = error if isinstance(error, WriteError) else explain_write_error(error, self.path)
        return f"{self.path} cannot be written ({error})" if problem is None else problem.problem

    def _flush(self) -> None:
        """Write the rows in memory: append them, or write the file again if it gets new columns."""
        rows = self._unwritten
        if not rows:
            return
        if not self.path.is_file():  # at the start, or removed meanwhile
            self.columns = []
        new = dict.fromkeys(name for row in rows for name in row if name not in self.columns)
        if not self.columns:
            earlier = [row for row in read_rows(self.path) if float(row[STEP]) < rows[0][STEP]]
            columns = list(dict.fromkeys([*(earlier[0] if earlier else ()), *new]))
            write_file(self.path, _format(columns, [*earlier, *rows], header=True))
        elif new:
            columns = [*self.columns, *new]
            write_file(self.path, _format(columns, [*read_rows(self.path), *rows], header=True))
        else:
            columns = self.columns
            _append(self.path, _format(columns, rows).encode())
        self.columns, self._unwritten = columns, []


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv, each with a whole step, and numbers or "" in its other columns.

    There are none without a file. Rows that a crash left incomplete are left out, with a warning. Raises
    UserError for another kind of table.
    """
    if not path.is_file():
        return []
    text = path.read_text(errors="replace").replace("\0", "")  # a power failure can leave a block of zeros
    complete = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(complete, newline=""), restval="")
    if reader.fieldnames and STEP not in reader.fieldnames:
        raise UserError(f"{path} is not a table of metrics (it has no column step): move it away")
    rows = list(reader)
    good = [row for row in rows if _is_complete(row)]
    if num_bad := len(rows) - len(good) + (complete != text):
        LOG.warning("%s: left out %d row(s) that are incomplete", path, num_bad)
    return good


def _is_complete(row: Mapping[str | None, Any]) -> bool:
    """Return whether a row has a whole step, and numbers or nothing in its other columns."""
    try:
        numbers = {name: float(value or 0) for name, value in row.items()}
    except (ValueError, TypeError):  # TypeError: a list of the fields beyond the last column
        return False
    return bool(row[STEP]) and numbers[STEP].is_integer()


def _format(columns: list[str], rows: Iterable[Mapping[str, Any]], header: bool = False) -> str:
    """Return rows as CSV."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _append(path: Path, data: bytes) -> None:
    """Append to a file; if that fails, remove what was appended."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise
