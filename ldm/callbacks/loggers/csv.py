"""Metrics in one CSV file per run.

Not Lightning's CSVLogger: that one starts a new folder `version_N` with every process and writes rows in
blocks. Here a resumed run continues its file and replaces the rows that it trains again, and each row is on
disk as soon as it is logged.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class CSVLogger(Logger):
    """Write a row per logged step to `path`."""

    name = version = None

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self.columns: list[str] = []

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Do nothing: the config is in the run's folder and in the model file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one row; new names become new columns."""
        row = {"step": step, **metrics}
        new = [name for name in row if name not in self.columns]
        if not self.columns:
            earlier = [r for r in self._read_rows() if int(r["step"]) < step]
            self._write([*dict.fromkeys([*(earlier[0] if earlier else ()), *row])], earlier)
        elif new:
            self._write([*self.columns, *new], self._read_rows())
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _read_rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with open(self.path, newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        self.columns = columns
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
