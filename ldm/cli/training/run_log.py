"""Read a run's log, its metrics.csv, together with its config.yaml."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.callbacks.loggers.csv import read_rows
from ldm.cli.training import run_config
from ldm.errors import UserError


@dataclass
class RunLog:
    """The configuration and the logged metrics of one run."""

    name: str
    config: dict[str, Any]
    columns: dict[str, list[tuple[float, float]]]
    """The (step, value) points of each metric."""


def read(folder: Path) -> RunLog:
    """Return the log of the run in `folder`; UserError if there is none, or no table of metrics."""
    if not (folder / "metrics.csv").is_file():
        raise UserError(
            f"{folder} has no metrics.csv: give folders that train.py wrote, such as runs/demo_text"
        )
    columns: dict[str, list[tuple[float, float]]] = {}
    for row in read_rows(folder / "metrics.csv"):
        for name, value in row.items():
            if name != "step" and value:
                columns.setdefault(name, []).append((float(row["step"]), float(value)))
    return RunLog(str(folder), run_config.read(folder), columns)
