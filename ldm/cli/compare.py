"""Compare runs, as a table and a plot: `python -m ldm.cli.compare RUN... [--metric val/loss]`."""

import argparse
import csv
import io
import math
from pathlib import Path

from ldm.atomic import write_file
from ldm.cli.config.command import user_errors
from ldm.cli.config.paths import check_local_path
from ldm.cli.training import plots, run_config, run_log
from ldm.cli.training.run_config import format_setting
from ldm.cli.training.run_log import RunLog
from ldm.errors import UserError

PLOT_FORMATS = (".png", ".pdf", ".svg")
DEFAULT_METRICS = ("val/loss", "val/nll", "train/loss")


def main() -> None:
    """Print a table of the runs, the best first, and write it as a CSV file next to a plot."""
    parser = argparse.ArgumentParser(prog="python -m ldm.cli.compare", description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder with metrics.csv and config.yaml")
    parser.add_argument("--metric", default=None, help="default: val/loss, else val/nll, else train/loss")
    parser.add_argument("--highest", action="store_true", help="higher is better, as for val/psnr")
    parser.add_argument(
        "--out", default="compare.png", help="the plot; the table is written next to it as .csv"
    )
    with user_errors():
        args = parser.parse_args()
        for path in args.runs:
            check_local_path("RUN", path)
        check_local_path("--out", args.out)
        runs = [run_log.read(Path(path)) for path in args.runs]
        metric = choose_metric(runs, args.metric)
        rows = build_table(runs, metric, args.highest)
        out = plot_path(args.out)
        print(format_rows(rows))
        for run in runs:
            for change in run.config.get("changes", []):
                print(f"{run.name}: {change}")
        curves = {legend_label(run, runs): run.columns[metric] for run in runs if metric in run.columns}
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        write_file(out.with_suffix(".csv"), table.getvalue())
        plot = io.BytesIO()
        plots.plot_curves(metric, curves).savefig(plot, format=out.suffix[1:].lower())
        write_file(out, plot.getvalue())
        print(f"wrote {out} and {out.with_suffix('.csv')}")


def plot_path(out: str) -> Path:
    """Return the path of the plot, by default a .png; UserError for a suffix of another kind of file."""
    path = Path(out if Path(out).suffix else f"{out}.png")
    if path.suffix.lower() not in PLOT_FORMATS:
        raise UserError(
            f"--out {out} is not a plot ({', '.join(PLOT_FORMATS)}): give the path of the plot; the table is "
            "written next to it as .csv"
        )
    return path


def choose_metric(runs: list[RunLog], metric: str | None) -> str:
    """Return `metric`, by default the first of DEFAULT_METRICS in a log; UserError if no run logged it."""
    logged = sorted({name for run in runs for name in run.columns})
    candidates = DEFAULT_METRICS if metric is None else (metric,)
    for name in candidates:
        if name in logged:
            return name
    raise UserError(
        f"no run logged the metric {candidates[0]}: give another --metric, of {', '.join(logged) or 'none'}"
    )


def differing_keys(runs: list[RunLog]) -> list[str]:
    """Return the config keys in which the runs differ."""
    first = runs[0].config
    keys = (key for run in runs[1:] for key, _, _ in run_config.differences(first, run.config))
    return list(dict.fromkeys(keys))


def build_table(runs: list[RunLog], metric: str, highest: bool) -> list[dict[str, str]]:
    """Return a row per run, the best first: last and best value, median speed, settings that differ."""
    keys, rows = differing_keys(runs), []
    for run in runs:
        points = [(at, value) for at, value in run.columns.get(metric, []) if math.isfinite(value)]
        step, best = (max if highest else min)(points, key=lambda point: point[1], default=(0, math.nan))
        speeds = [value for _, value in run.columns.get("speed/images_per_second", [])]
        settings = dict(run_config.flatten(run.config, nodes=True))
        row = {
            "run": run.name,
            "steps": f"{max((at for column in run.columns.values() for at, _ in column), default=0):.0f}",
            f"last {metric}": f"{points[-1][1]:.5g}" if points else "",
            f"best {metric}": f"{best:.5g}",
            "at step": f"{step:.0f}",
            "images/s per rank": f"{sorted(speeds)[len(speeds) // 2]:.3g}" if speeds else "",
            **{key: format_setting(settings.get(key)) for key in keys},
        }
        rows.append((best if math.isfinite(best) else math.inf * (-1 if highest else 1), row))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0], reverse=highest)]


def format_rows(rows: list[dict[str, str]]) -> str:
    """Return the rows as aligned columns of text."""
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    lines = [{key: key for key in widths}, *rows]
    return "\n".join(
        "  ".join(line[key].ljust(width) for key, width in widths.items()).rstrip() for line in lines
    )


def legend_label(run: RunLog, runs: list[RunLog]) -> str:
    """Return a run's name and the settings in which the runs differ."""
    settings = dict(run_config.flatten(run.config, nodes=True))
    changed = (f"{key}={format_setting(settings.get(key))}" for key in differing_keys(runs))
    return "  ".join([run.name, *changed])[:130]


if __name__ == "__main__":
    main()
