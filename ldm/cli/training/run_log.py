"""Read a run's log, its metrics.csv, together with its config.yaml."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """Return the log of the run in `folder`; UserError if there is none."""
    if not (folder / "metrics.csv").is_file():
        raise UserError(
            f"{folder} has no metrics.csv: give folders that train.py wrote, such as runs/demo_text"
        )
    columns: dict[str, list[tuple[float, float]]] = {}
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != "step" and value:
                    columns.setdefault(name, []).append((float(row["step"]), float(value)))
    return RunLog(str(folder), run_config.read(folder), columns)
