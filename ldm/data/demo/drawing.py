"""Scenes of one or two coloured shapes on a plain background, and how they are rendered.

Lengths are in pixels of an image 64 wide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image, ImageDraw

RGB: TypeAlias = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (220, 40, 40),
    "green": (30, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 205, 40),
}
BACKGROUNDS: dict[str, RGB] = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
SHAPES = ("circle", "square", "triangle")
SIZES: dict[str, int] = {"small": 18, "large": 26}
"""Side of a shape's bounding square."""

CANVAS = 64
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """An object of a scene, as its caption names it."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """The content of a caption; `relation` is that of the first object to the second."""

    background: str
    things: tuple[Thing, ...]
    relation: str | None = None


@dataclass(frozen=True)
class Place:
    """Where an object is drawn: the centre of its bounding square, and how wide it is."""

    x: float
    y: float
    across: float


def draw(scene: Scene, places: Sequence[Place], size: int = CANVAS) -> Image.Image:
    """Render a scene, antialiased, as RGB of size x size."""
    side = SUPERSAMPLING * size
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(image)
    for thing, place in zip(scene.things, places, strict=True):
        draw_shape(pen, thing.shape, place, side / CANVAS, COLOURS[thing.colour])
    return image.reduce(SUPERSAMPLING)


def draw_shape(pen: ImageDraw.ImageDraw, shape: str, place: Place, scale: float, fill: int | RGB) -> None:
    """Draw a filled shape, `scale` times as large as in an image 64 wide."""
    half = place.across / 2
    left, top = (round((c - half) * scale) for c in (place.x, place.y))
    right, bottom = (round((c + half) * scale) - 1 for c in (place.x, place.y))  # Pillow includes both ends
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=fill)
    elif shape == "square":
        pen.rectangle((left, top, right, bottom), fill=fill)
    else:
        pen.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=fill)
