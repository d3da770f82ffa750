"""Captioned scenes of one or two coloured shapes on a plain background.

A scene is a pure function of (split, seed, index). About a tenth of the arrangements, as
(shape, colour, relation, shape, colour), are held out of training. A scene is told from its left or
upper object, so that a caption's order says the places. Lengths are in pixels of a picture 64 wide.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import blake2b
from io import BytesIO
from itertools import permutations, product
from typing import Literal, TypeAlias

from PIL import Image, ImageDraw

from ldm import keyed
from ldm.data.sources import Record

Split: TypeAlias = Literal["train", "val", "held_out"]
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
"""Side of the square that a shape fills."""
DEPTHS: dict[str, int] = {"small": 128, "large": 255}
"""Of 255 for the nearest; the background is 0."""
RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (-1, 0),
    "above": (0, -1),
}
"""Where the first object lies, seen from the second; y points down."""

CANVAS = 64
JITTER = {"small": 3, "large": 0}
"""How far along the relation's axis a centre may wander: two large objects leave no more room."""
CROSS_JITTER = 3
REACH = 15
"""From the picture's centre to an object's nominal centre where there are two."""
SUPERSAMPLING = 4
ONE_OBJECT_SHARE = 0.25


@dataclass(frozen=True)
class Thing:
    """One object as its caption names it."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a caption says; `relation` is that of the first object to the second."""

    background: str
    things: tuple[Thing, ...]
    relation: str | None = None


@dataclass(frozen=True)
class Place:
    """Where an object is drawn: the centre and the side of its bounding square."""

    x: float
    y: float
    across: float


Arrangement: TypeAlias = tuple[str, str, str, str, str]
"""colour, shape, relation, colour, shape"""


def caption(scene: Scene) -> str:
    """The one sentence that describes `scene`, told from the left or from above."""
    objects = f" {scene.relation} ".join(map(str, scene.things))
    return f"{objects} on a {scene.background} background"


def _pattern() -> re.Pattern[str]:
    def any_of(words: object) -> str:
        return "(" + "|".join(words) + ")"  # type: ignore[arg-type]

    thing = f"a {any_of(SIZES)} {any_of(COLOURS)} {any_of(SHAPES)}"
    return re.compile(f"{thing}(?: {any_of(RELATIONS)} {thing})? on a {any_of(BACKGROUNDS)} background")


_CAPTION = _pattern()


def parse(text: str) -> Scene:
    """The inverse of `caption`; ValueError where `text` is no such sentence."""
    match = _CAPTION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} does not describe a demo scene")
    *first, relation, size, colour, shape, background = match.groups()
    things = (Thing(*first),) if relation is None else (Thing(*first), Thing(size, colour, shape))
    return Scene(background, things, relation)


def is_held_out(scene: Scene) -> bool:
    """Whether the arrangement is kept out of training: a tenth, by a hash of it."""
    if scene.relation is None:
        return False
    first, second = scene.things
    text = f"{first.colour} {first.shape} {scene.relation} {second.colour} {second.shape}"
    return blake2b(text.encode(), digest_size=8).digest()[0] % 10 == 0


@cache
def arrangements(held_out: bool) -> tuple[Arrangement, ...]:
    """All arrangements of two objects that differ in colour or shape, on one side of the split."""
    objects = product(COLOURS, SHAPES)
    found = [(*a, r, *b) for (a, b), r in product(permutations(objects, 2), RELATIONS)]
    return tuple(a for a in found if is_held_out(_arranged(a, "white", ("small", "small"))) == held_out)


def _arranged(arrangement: Arrangement, background: str, sizes: tuple[str, str]) -> Scene:
    colour_a, shape_a, relation, colour_b, shape_b = arrangement
    first, second = Thing(sizes[0], colour_a, shape_a), Thing(sizes[1], colour_b, shape_b)
    return Scene(background, (first, second), relation)


def every_scene(held_out: bool) -> list[Scene]:
    """Every scene that one side of the split can tell, each once."""
    pairs = product(arrangements(held_out), BACKGROUNDS, product(SIZES, SIZES))
    two = [_arranged(a, background, sizes) for a, background, sizes in pairs]
    singles = product(BACKGROUNDS, SIZES, COLOURS, SHAPES)
    return two if held_out else [Scene(b, (Thing(*words),)) for b, *words in singles] + two


def _scene(split: Split, u: Sequence[float]) -> Scene:
    def pick(words: Sequence[str], number: float) -> str:
        return words[int(number * len(words))]

    background = pick(tuple(BACKGROUNDS), u[0])
    sizes = pick(tuple(SIZES), u[1]), pick(tuple(SIZES), u[2])
    if split != "held_out" and u[3] < ONE_OBJECT_SHARE:
        return Scene(background, (Thing(sizes[0], pick(tuple(COLOURS), u[4]), pick(SHAPES, u[5])),))
    choices = arrangements(split == "held_out")
    return _arranged(choices[int(u[4] * len(choices))], background, sizes)


def _wander(reach: int, u: float) -> int:
    """A whole number in [-reach, reach] from u in [0, 1)."""
    return math.floor((2 * reach + 1) * u) - reach


def place(scene: Scene, u: Sequence[float]) -> tuple[Place, ...]:
    """Centres, on whole pixels, from two numbers in [0, 1) an object.

    Objects stay 3 px from one another and from the border, and the relation's axis always dominates.
    """
    dx, dy = RELATIONS[scene.relation] if scene.relation else (0, 0)
    places = []
    for i, thing in enumerate(scene.things):
        reach = REACH - 2 * REACH * i
        along = _wander(JITTER[thing.size] if scene.relation else CROSS_JITTER, u[2 * i])
        cross = _wander(CROSS_JITTER, u[2 * i + 1])
        x, y = (cross, along) if dy else (along, cross)
        middle = CANVAS // 2
        places.append(Place(middle + reach * dx + x, middle + reach * dy + y, SIZES[thing.size]))
    return tuple(places)


def draw(scene: Scene, places: Sequence[Place], size: int = CANVAS) -> Image.Image:
    """The antialiased picture, size x size RGB."""
    scale = SUPERSAMPLING * size / CANVAS
    side = SUPERSAMPLING * size
    picture = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(picture)
    for thing, spot in zip(scene.things, places, strict=True):
        shape(pen, thing.shape, spot, scale, COLOURS[thing.colour])
    return picture.reduce(SUPERSAMPLING)


def shape(pen: ImageDraw.ImageDraw, name: str, spot: Place, scale: float, fill: RGB | int) -> None:
    """Fill one shape of so many pixels a unit of length."""
    half = spot.across / 2
    left, top = (round((c - half) * scale) for c in (spot.x, spot.y))
    right, bottom = (round((c + half) * scale) - 1 for c in (spot.x, spot.y))  # Pillow fills both ends
    if name == "circle":
        pen.ellipse((left, top, right, bottom), fill=fill)
    elif name == "square":
        pen.rectangle((left, top, right, bottom), fill=fill)
    else:
        middle = (left + right) / 2
        pen.polygon([(middle, top), (right, bottom), (left, bottom)], fill=fill)


def number(thing: Thing) -> int:
    """The class of an object, 0..11: its colour's place in COLOURS times 3 and its shape's in SHAPES."""
    return list(COLOURS).index(thing.colour) * len(SHAPES) + SHAPES.index(thing.shape)


def labels(scene: Scene, places: Sequence[Place], size: int = CANVAS) -> Image.Image:
    """The semantic map, exact: 0 is the background, 1 + its class an object; objects never touch."""
    side = SUPERSAMPLING * size
    picture = Image.new("L", (side, side))
    pen = ImageDraw.Draw(picture)
    for thing, spot in zip(scene.things, places, strict=True):
        shape(pen, thing.shape, spot, side / CANVAS, 1 + number(thing))
    return picture.resize((size, size), Image.Resampling.NEAREST)


def depths(scene: Scene, labels: Image.Image) -> Image.Image:
    """The depth that a scene's sizes suggest, by its semantic map: a large object is the nearest."""
    table = [0] * 256
    for thing in scene.things:
        table[1 + number(thing)] = DEPTHS[thing.size]
    return labels.point(table)


def boxes(scene: Scene, places: Sequence[Place]) -> list[list[float]]:
    """(class, left, top, right, bottom) of each object, in [0, 1]."""
    return [
        [number(thing), *((c + side * p.across / 2) / CANVAS for side in (-1, 1) for c in (p.x, p.y))]
        for thing, p in zip(scene.things, places, strict=True)
    ]


def _png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, "PNG", compress_level=1)  # flat colours are small at any level
    return file.getvalue()


class DemoScenes(Sequence[Record]):
    """`count` drawn scenes. train and val share their arrangements, held_out has the others.

    Beside a picture and its caption lie the class of the first-named object (`cls`), the semantic map, the
    depth and, in the json, the `boxes`.
    """

    def __init__(
        self, split: Split = "train", count: int = 20_000, seed: int = 0, size: int = CANVAS
    ) -> None:
        if size < CANVAS:
            raise ValueError(f"size is {size}, but scenes are only legible from {CANVAS} pixels")
        self.split, self.length, self.seed, self.size = split, count, seed, size

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> tuple[Scene, tuple[Place, ...]]:
        """What picture `index` shows and where, without drawing it."""
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        u = keyed.uniform(self.seed, [index], f"scene/{self.split}", (10,))[0].tolist()
        scene = _scene(self.split, u[:6])
        return scene, place(scene, u[6:])

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        scene, places = self.scene(index)
        picture, map_of_labels = draw(scene, places, self.size), labels(scene, places, self.size)
        known = {**asdict(scene), "places": [asdict(p) for p in places], "boxes": boxes(scene, places)}
        members = {
            "cls": str(number(scene.things[0])).encode(),
            "seg.png": _png(map_of_labels),
            "depth.png": _png(depths(scene, map_of_labels)),
        }
        return Record(picture, caption(scene), known, members)


def captions(split: Split, n: int, seed: int = 0, count: int = 20_000) -> list[str]:
    """`n` distinct captions that do occur in `DemoScenes(split, count)`, drawn by `seed`.

    Of "train" they are the seen captions: a training set of at least `count` scenes holds every one.
    """
    scenes = DemoScenes(split, count)
    found: dict[str, None] = {}
    for number in keyed.uniform(seed, [0], f"captions/{split}", (8 * n,))[0].tolist():
        found[caption(scenes.scene(math.floor(number * count))[0])] = None
        if len(found) == n:
            return list(found)
    raise ValueError(f"{n} distinct captions wanted, {len(found)} found among {count} {split} scenes")
