"""Captioned scenes of one or two coloured shapes on a plain background.

A scene is a pure function of (split, seed, index). About a tenth of the arrangements, each a tuple (colour,
shape, relation, colour, shape), are held out of training. A caption names the left or upper object first, so
that the order gives the positions. Lengths are in pixels of an image 64 wide.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from hashlib import blake2b
from itertools import permutations, product
from typing import Literal, TypeAlias

from ldm import rng
from ldm.data.demo import maps
from ldm.data.demo.drawing import BACKGROUNDS, CANVAS, COLOURS, SHAPES, SIZES, Place, Scene, Thing, draw
from ldm.data.sources import Record
from ldm.errors import InvalidValue
from ldm.typing import Pixels, PositiveInt, Seed

Split: TypeAlias = Literal["train", "val", "held_out"]

RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (-1, 0),
    "above": (0, -1),
}
"""Direction from the second object to the first; y points down."""

JITTER = {"small": 3, "large": 0}
"""Largest shift of a centre along the axis of the relation: two large objects leave no room for one."""
CROSS_JITTER = 3
CENTRE_OFFSET = 15
"""From the image's centre to an object's nominal centre, in scenes of two."""
ONE_OBJECT_SHARE = 0.25


Arrangement: TypeAlias = tuple[str, str, str, str, str]
"""(colour, shape, relation, colour, shape)."""


def caption(scene: Scene) -> str:
    """Return the only caption of `scene`, which names the left or upper object first."""
    objects = f" {scene.relation} ".join(map(str, scene.things))
    return f"{objects} on a {scene.background} background"


def _pattern() -> re.Pattern[str]:
    def any_of(words: object) -> str:
        return "(" + "|".join(words) + ")"  # type: ignore[arg-type]

    thing = f"a {any_of(SIZES)} {any_of(COLOURS)} {any_of(SHAPES)}"
    return re.compile(f"{thing}(?: {any_of(RELATIONS)} {thing})? on a {any_of(BACKGROUNDS)} background")


_CAPTION = _pattern()


def parse(text: str) -> Scene:
    """Invert `caption`; raise InvalidValue for any other text."""
    match = _CAPTION.fullmatch(text)
    if match is None:
        raise InvalidValue(f"{text!r} does not describe a demo scene")
    *first, relation, size, colour, shape, background = match.groups()
    things = (Thing(*first),) if relation is None else (Thing(*first), Thing(size, colour, shape))
    return Scene(background, things, relation)


def is_held_out(scene: Scene) -> bool:
    """Return whether the scene's arrangement is held out of training: a tenth are, by their hash."""
    if scene.relation is None:
        return False
    first, second = scene.things
    text = f"{first.colour} {first.shape} {scene.relation} {second.colour} {second.shape}"
    return blake2b(text.encode(), digest_size=8).digest()[0] % 10 == 0


@cache
def arrangements(held_out: bool) -> tuple[Arrangement, ...]:
    """Return all arrangements of two objects that differ in colour or shape, held out or not."""
    objects = product(COLOURS, SHAPES)
    both = [(*a, r, *b) for (a, b), r in product(permutations(objects, 2), RELATIONS)]
    return tuple(a for a in both if is_held_out(_pair_scene(a, "white", ("small", "small"))) == held_out)


def _pair_scene(arrangement: Arrangement, background: str, sizes: tuple[str, str]) -> Scene:
    colour_a, shape_a, relation, colour_b, shape_b = arrangement
    first, second = Thing(sizes[0], colour_a, shape_a), Thing(sizes[1], colour_b, shape_b)
    return Scene(background, (first, second), relation)


def every_scene(held_out: bool) -> list[Scene]:
    """Return every scene of the training or held-out arrangements once."""
    pairs = product(arrangements(held_out), BACKGROUNDS, product(SIZES, SIZES))
    two = [_pair_scene(a, background, sizes) for a, background, sizes in pairs]
    singles = product(BACKGROUNDS, SIZES, COLOURS, SHAPES)
    return two if held_out else [Scene(b, (Thing(*words),)) for b, *words in singles] + two


def _make_scene(split: Split, u: Sequence[float]) -> Scene:
    """Choose a scene by six numbers in [0, 1)."""

    def pick(words: Sequence[str], number: float) -> str:
        return words[int(number * len(words))]

    background = pick(tuple(BACKGROUNDS), u[0])
    sizes = pick(tuple(SIZES), u[1]), pick(tuple(SIZES), u[2])
    if split != "held_out" and u[3] < ONE_OBJECT_SHARE:
        return Scene(background, (Thing(sizes[0], pick(tuple(COLOURS), u[4]), pick(SHAPES, u[5])),))
    choices = arrangements(split == "held_out")
    return _pair_scene(choices[int(u[4] * len(choices))], background, sizes)


def _shift(limit: int, u: float) -> int:
    """Map u in [0, 1) to a whole number in [-limit, limit]."""
    return math.floor((2 * limit + 1) * u) - limit


def place_objects(scene: Scene, u: Sequence[float]) -> tuple[Place, ...]:
    """Return places centred on whole pixels, from two numbers in [0, 1) per object.

    Objects stay 3 px from each other and from the border, and the relation's axis always dominates.
    """
    dx, dy = RELATIONS[scene.relation] if scene.relation else (0, 0)
    places = []
    for i, thing in enumerate(scene.things):
        offset = CENTRE_OFFSET - 2 * CENTRE_OFFSET * i
        along = _shift(JITTER[thing.size] if scene.relation else CROSS_JITTER, u[2 * i])
        cross = _shift(CROSS_JITTER, u[2 * i + 1])
        x, y = (cross, along) if dy else (along, cross)
        middle = CANVAS // 2
        places.append(Place(middle + offset * dx + x, middle + offset * dy + y, SIZES[thing.size]))
    return tuple(places)


class DemoScenes(Sequence[Record]):
    """`count` synthetic scenes: train and val share their arrangements, held_out has the others."""

    def __init__(
        self, split: Split = "train", count: PositiveInt = 20_000, seed: Seed = 0, size: Pixels = CANVAS
    ) -> None:
        if size < CANVAS:
            raise InvalidValue(f"size={size} is too small to show the shapes: use {CANVAS} or more")
        self.split, self.length, self.seed, self.size = split, count, seed, size

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> tuple[Scene, tuple[Place, ...]]:
        """Return scene `index` and its places, without rendering it."""
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        u = rng.uniform(self.seed, [index], f"scene/{self.split}", (10,))[0].tolist()
        scene = _make_scene(self.split, u[:6])
        return scene, place_objects(scene, u[6:])

    def __getitem__(self, index: int) -> Record:
        scene, places = self.scene(index)
        image = draw(scene, places, self.size)
        locations = {"places": [asdict(p) for p in places], "boxes": maps.boxes(scene, places)}
        metadata = {**asdict(scene), **locations, "aesthetic": maps.score(scene)}
        return Record(image, caption(scene), metadata, maps.members(scene, places, self.size))


def captions(split: Split, n: int, seed: int = 0, count: int = 20_000) -> list[str]:
    """Sample `n` distinct captions of `DemoScenes(split, count)`, by `seed`.

    For "train" these are captions seen in training, if the training set has `count` scenes or more.
    """
    scenes = DemoScenes(split, count)
    distinct: dict[str, None] = {}
    for number in rng.uniform(seed, [0], f"captions/{split}", (8 * n,))[0].tolist():
        distinct[caption(scenes.scene(math.floor(number * count))[0])] = None
        if len(distinct) == n:
            return list(distinct)
    raise InvalidValue(
        f"n={n} distinct captions, but only {len(distinct)} found among {count} {split} scenes: ask for fewer"
    )
