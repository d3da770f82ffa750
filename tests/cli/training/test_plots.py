"""Plots: lines, scales and points are where they should be."""

import math

import torch
from matplotlib.figure import Figure
from PIL import Image

from ldm.cli.training.plots import plot_curves, plot_points


def render(figure: Figure, path) -> Image.Image:
    figure.savefig(path)
    return Image.open(path).convert("RGB")


def test_a_curve_has_its_points_label_and_scale(tmp_path):
    figure = plot_curves(
        "loss", {"a": [(0, 100.0), (50, 10.0), (100, 1.0), (110, math.nan)], "b": [(0, 5.0)]}
    )
    (axes,) = figure.axes
    first, second = axes.get_lines()
    assert first.get_xydata().tolist() == [[0, 100], [50, 10], [100, 1]]
    assert (first.get_label(), second.get_label()) == ("a", "b")
    assert (axes.get_yscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "step", "loss")
    assert render(figure, tmp_path / "a.png").size[0] == 1000


def test_values_within_a_factor_of_30_have_a_linear_scale():
    assert plot_curves("loss", {"a": [(0, 3.0), (1, 1.0)]}).axes[0].get_yscale() == "linear"
    assert plot_curves("loss", {"a": [(0, 300.0), (1, -1.0)]}).axes[0].get_yscale() == "linear"


def test_many_points_are_a_line_without_markers():
    few, many = ([(i, 1.0 + i) for i in range(n)] for n in (39, 40))
    lines = plot_curves("loss", {"few": few, "many": many}).axes[0].get_lines()
    assert [line.get_marker() for line in lines] == ["o", ""]


def test_a_curve_without_finite_values(tmp_path):
    assert render(plot_curves("loss", {"a": [(1, math.nan)]}), tmp_path / "a.png").size[0] == 1000


def test_every_point_cloud_is_in_its_own_axes(tmp_path):
    corner, middle = torch.full((500, 2), 0.9), torch.zeros(500, 2)
    figure = plot_points({"one": [corner, middle], "two": [middle, corner]}, ["3 steps", "5 steps"], 1.0)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["3 steps", "5 steps"]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["one", "two"]
    sheet = render(figure, tmp_path / "clouds.png")
    for axes, x in zip(figure.axes, [0.9, 0, 0, 0.9], strict=True):
        assert darkest(sheet, axes, x, x) < 60 and darkest(sheet, axes, -0.5, -0.5) == 255


def darkest(sheet: Image.Image, axes, x: float, y: float) -> int:
    """Return the darkest of the nine pixels around a point of the plane."""
    column, row = (round(position) for position in axes.transData.transform((x, y)))
    top = sheet.height - 1 - row
    return sheet.convert("L").crop((column - 1, top - 1, column + 2, top + 2)).getextrema()[0]
