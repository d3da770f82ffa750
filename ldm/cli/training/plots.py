"""Plots: curves over steps, and 2D point clouds side by side."""

import math
from collections.abc import Mapping, Sequence

from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor


def plot_curves(metric: str, runs: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Plot one line per run through its (step, value) points; on a log scale if values span a factor 30."""
    figure = Figure(figsize=(10, 5.6 + 0.2 * len(runs)), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, points in runs.items():
        finite = [(step, value) for step, value in points if math.isfinite(value)]
        marker = "o" if len(finite) < 40 else ""
        axes.plot([s for s, _ in finite], [v for _, v in finite], marker=marker, markersize=4, label=name)
    values = [value for points in runs.values() for _, value in points if math.isfinite(value)]
    if values and min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel=metric)
    locator = axes.xaxis.get_major_locator()
    assert isinstance(locator, MaxNLocator)
    locator.set_params(integer=True)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower left", fontsize="small")
    return figure


def plot_points(
    rows: Mapping[str, Sequence[Float[Tensor, "n 2"]]], columns: Sequence[str], extent: float
) -> Figure:
    """Plot points in the plane: one row per name, one column per title, axes from -extent to extent."""
    figure = Figure(figsize=(1.2 * len(columns) + 1.2, 1.2 * len(rows) + 0.3), dpi=100, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (name, row) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, points in zip(line, row, strict=True):
            axes.scatter(*points.T.numpy(), s=0.4, c="black", alpha=0.25, linewidths=0)
            axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal", xticks=[], yticks=[])
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(title, fontsize="medium")
    return figure
