"""Runs side by side: `python -m ldm.cli.compare RUN... [--metric val/loss] [--out compare.png]`."""

import argparse
import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.cli.config.command import user_errors
from ldm.cli.training import plots, run_config
from ldm.errors import UserError

PLOTS = (".png", ".pdf", ".svg")


@dataclass
class Run:
    """What one run's folder says."""

    name: str
    config: dict[str, Any]
    columns: dict[str, list[tuple[float, float]]]
    """Metric to its (step, value) points."""


def main() -> None:
    """Print a table, the best run first, and write it as CSV beside a plot."""
    parser = argparse.ArgumentParser(prog="python -m ldm.cli.compare", description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder with metrics.csv and config.yaml")
    parser.add_argument("--metric", default=None, help="default: val/loss, else val/nll, else train/loss")
    parser.add_argument(
        "--highest", action="store_true", help="the highest value is the best, as for val/psnr"
    )
    parser.add_argument("--out", default="compare.png", help="the plot; the table goes beside it as .csv")
    args = parser.parse_args()
    with user_errors():
        runs = [read(Path(path)) for path in args.runs]
        metric = choose(runs, args.metric)
        rows = table(runs, metric, args.highest)
        out = plot(args.out)
        print(text(rows))
        drawn = {label(run, runs): run.columns[metric] for run in runs if metric in run.columns}
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with open(out.with_suffix(".csv"), "w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
            plots.curves(metric, drawn).savefig(out)
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror}): give another --out") from error
        print(f"wrote {out} and {out.with_suffix('.csv')}")


def plot(out: str) -> Path:
    """Where the plot goes, as a PNG if nothing is said; UserError for what no plot is written as."""
    path = Path(out if Path(out).suffix else f"{out}.png")
    if path.suffix.lower() not in PLOTS:
        raise UserError(f"--out {out} names the plot, a {', '.join(PLOTS)}: the table goes beside it as .csv")
    return path


def read(folder: Path) -> Run:
    """A run's numbers and configuration; UserError where there are none."""
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
    return Run(str(folder), run_config.read(folder), columns)


def choose(runs: list[Run], metric: str | None) -> str:
    """The metric asked for, or the first usual one; UserError where no run has it."""
    found = sorted({name for run in runs for name in run.columns})
    wanted = [metric] if metric is not None else ["val/loss", "val/nll", "train/loss"]
    for name in wanted:
        if name in found:
            return name
    raise UserError(f"no run has the metric {wanted[0]}: give --metric, one of {', '.join(found) or 'none'}")


def varied(runs: list[Run]) -> list[str]:
    """The settings in which the runs differ."""
    first = runs[0].config
    keys = (key for run in runs[1:] for key, _, _ in run_config.differences(first, run.config))
    return list(dict.fromkeys(keys))


def table(runs: list[Run], metric: str, highest: bool) -> list[dict[str, str]]:
    """One row a run: its last and best value, its speed, and the settings that set it apart."""
    keys, rows = varied(runs), []
    for run in runs:
        points = [(s, v) for s, v in run.columns.get(metric, []) if math.isfinite(v)]
        step, best = (max if highest else min)(points, key=lambda p: p[1], default=(0, math.nan))
        speed = [value for _, value in run.columns.get("speed/images_per_second", [])]
        settings = dict(run_config.flat(run.config, nodes=True))
        row = {
            "run": run.name,
            "steps": f"{max((s for c in run.columns.values() for s, _ in c), default=0):.0f}",
            f"last {metric}": f"{points[-1][1]:.5g}" if points else "",
            f"best {metric}": f"{best:.5g}",
            "at step": f"{step:.0f}",
            "images/s a rank": f"{sorted(speed)[len(speed) // 2]:.3g}" if speed else "",
            **{key: said(settings.get(key)) for key in keys},
        }
        rows.append((best if math.isfinite(best) else math.inf * (-1 if highest else 1), row))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0], reverse=highest)]


def said(value: Any) -> str:
    """A setting as it is typed."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')


def text(rows: list[dict[str, str]]) -> str:
    """The rows in columns."""
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    lines = [{key: key for key in widths}, *rows]
    return "\n".join(
        "  ".join(line[key].ljust(width) for key, width in widths.items()).rstrip() for line in lines
    )


def label(run: Run, runs: list[Run]) -> str:
    """A run's name and what sets it apart."""
    settings = dict(run_config.flat(run.config, nodes=True))
    return "  ".join([run.name, *(f"{key}={said(settings.get(key))}" for key in varied(runs))])[:130]


if __name__ == "__main__":
    main()
