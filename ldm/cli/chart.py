"""Curves over steps as a picture."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1000, 560, 80, 20, 40, 50
COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000", "#994455",
)  # fmt: skip


def chart(title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> Image.Image:
    """One line a name through its (step, value) points; logarithmic where values span a factor of 30."""
    legend = 18 * len(curves)
    sheet = Image.new("RGB", (WIDTH, HEIGHT + legend + 10), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    values = [v for points in curves.values() for _, v in points if math.isfinite(v)]
    last = max((step for points in curves.values() for step, _ in points), default=1) or 1
    log = bool(values) and min(values) > 0 and max(values) > 30 * min(values)
    scale = math.log10 if log else float
    low, high = (scale(min(values)), scale(max(values))) if values else (0.0, 1.0)
    high = high if high > low else low + 1

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (scale(value) - low) / (high - low)

    pen.text((LEFT, 12), title + (" (logarithmic)" if log else ""), "black", font)
    for tick in ticks(low, high):
        y = place(0, 10**tick if log else tick)[1]
        pen.line([(LEFT, y), (WIDTH - RIGHT, y)], "#dddddd")
        pen.text((6, y - 8), f"{10**tick if log else tick:.4g}", "black", font)
    for tick in ticks(0, last):
        x = LEFT + (WIDTH - LEFT - RIGHT) * tick / last
        pen.text((x - 10, HEIGHT - BOTTOM + 8), f"{tick:g}", "black", font)
    pen.text((WIDTH // 2, HEIGHT - 22), "step", "black", font)
    for i, (name, points) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        line = [place(step, value) for step, value in points if math.isfinite(value)]
        pen.line(line, colour, 2)
        for x, y in line if len(line) < 40 else ():
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], colour)
        pen.rectangle([LEFT, HEIGHT + 18 * i + 4, LEFT + 20, HEIGHT + 18 * i + 9], colour)
        pen.text((LEFT + 28, HEIGHT + 18 * i), name, "black", font)
    return sheet


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers in [low, high]."""
    raw = (high - low) / 5
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
