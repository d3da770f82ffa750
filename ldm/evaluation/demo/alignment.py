"""Whether a demo image shows what its caption says: the exact checker's verdicts and scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import UInt8
from torch import Tensor

from ldm import rng
from ldm.data.demo.scenes import RELATIONS, Scene, Thing, parse
from ldm.errors import InvalidValue
from ldm.evaluation.demo.scene_reader import DetectedObject, SceneReading, read
from ldm.typing import Image

Z_95 = 1.959964


@dataclass(frozen=True)
class Verdict:
    """What a image has right of its caption; with a wrong number of objects only the background can be."""

    background: bool
    objects: bool
    shapes: bool
    colours: bool
    relation: bool
    sizes: bool

    @property
    def passed(self) -> bool:
        """Background, every shape, every colour and the relation are right."""
        return self.background and self.objects and self.shapes and self.colours and self.relation

    @property
    def passed_with_size(self) -> bool:
        return self.passed and self.sizes


@dataclass(frozen=True)
class AlignmentScore:
    """Shares of images in [0, 1]; `relation` is that of captions with two objects (nan without any)."""

    n: int
    passed: float
    low: float
    high: float
    """Wilson's 95 % interval of `passed`."""
    background: float
    objects: float
    shapes: float
    colours: float
    relation: float
    sizes: float
    passed_with_size: float


def check(reading: SceneReading, caption: str) -> Verdict:
    """Compare with the caption; of the two ways to match two objects the better counts."""
    scene = parse(caption)
    background, objects = reading.background == scene.background, reading.objects
    if objects is None or len(objects) != len(scene.things):
        return Verdict(background, *[False] * 5)
    orders = [objects] if len(objects) == 1 else [objects, objects[::-1]]
    best = max((_match(order, scene) for order in orders), key=lambda m: (sum(m[0]) + sum(m[1]), m[2]))
    shapes, colours, relation, sizes = best
    return Verdict(background, True, all(shapes), all(colours), relation, all(sizes))


def score(images: UInt8[Tensor, "b 3 h w"] | Image, captions: Sequence[str]) -> AlignmentScore:
    """How many images show what their captions say."""
    return _score([check(r, c) for r, c in zip(read(images), captions, strict=True)], captions)


def chance(
    images: UInt8[Tensor, "b 3 h w"] | Image, captions: Sequence[str], seed: int = 0, rounds: int = 10
) -> AlignmentScore:
    """The score against other images' captions: up to `rounds` shifts of a shuffled order."""
    n = len(captions)
    if n < 2:
        raise InvalidValue(f"{n} caption cannot be shuffled")
    readings = read(images)
    order = torch.randperm(n, generator=rng.generator(seed, 0, "chance")).tolist()
    pairs = [(order[i], order[(i + shift) % n]) for shift in range(1, min(rounds + 1, n)) for i in range(n)]
    return _score([check(readings[i], captions[j]) for i, j in pairs], [captions[j] for _, j in pairs])


def table(scores: Mapping[str, AlignmentScore]) -> str:
    """One row a score, in per cent."""
    names = [f.name for f in fields(AlignmentScore) if f.name not in ("n", "passed", "low", "high")]
    wide = max(len(label) for label in scores)
    titles = "  ".join(f"{name.removeprefix('passed_').replace('_', ' '):>10}" for name in names)
    rows = [f"{'':{wide}}  {'n':>5}  {'passed':>6}  {'95 %':>13}  {titles}"]
    for label, s in scores.items():
        start = f"{label:{wide}}  {s.n:5d}  {100 * s.passed:6.1f}  {100 * s.low:5.1f} – {100 * s.high:5.1f}  "
        rows.append(start + "  ".join(f"{100 * getattr(s, n):10.1f}" for n in names))
    return "\n".join(rows)


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927)."""
    p, z2 = right / n, Z_95**2
    middle, half = p + z2 / (2 * n), Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def _score(verdicts: Sequence[Verdict], captions: Sequence[str]) -> AlignmentScore:
    def share(name: str, among: Sequence[Verdict] = verdicts) -> float:
        return sum(getattr(v, name) for v in among) / len(among) if among else math.nan

    n, right = len(verdicts), sum(v.passed for v in verdicts)
    pairs = [v for v, c in zip(verdicts, captions, strict=True) if parse(c).relation]
    rest = {name: share(name) for name in ("background", "objects", "shapes", "colours", "sizes")}
    low, high = wilson(right, n)
    return AlignmentScore(
        n,
        right / n,
        low,
        high,
        **rest,
        relation=share("relation", pairs),
        passed_with_size=share("passed_with_size"),
    )


def _match(
    objects: Sequence[DetectedObject], scene: Scene
) -> tuple[list[bool], list[bool], bool, list[bool]]:
    pairs: list[tuple[DetectedObject, Thing]] = list(zip(objects, scene.things, strict=True))
    shapes, colours = [o.shape == t.shape for o, t in pairs], [o.colour == t.colour for o, t in pairs]
    return shapes, colours, _related(objects, scene.relation), [o.size == t.size for o, t in pairs]


def _related(objects: Sequence[DetectedObject], relation: str | None) -> bool:
    if relation is None:
        return True
    first, second = objects
    x, y = first.x - second.x, first.y - second.y
    dx, dy = RELATIONS[relation]
    return x * dx + y * dy > abs(x * dy) + abs(y * dx)
