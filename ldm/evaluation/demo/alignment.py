"""Check exactly whether demo images show what their captions say."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import UInt8
from torch import Tensor

from ldm import rng
from ldm.data.demo.scenes import RELATIONS, Scene, Thing, parse
from ldm.errors import InvalidValue
from ldm.evaluation.demo.scene_reader import DetectedObject, SceneReading, read_scenes
from ldm.typing import Image

Z_95 = 1.959964
"""Half width of the normal 95 % interval, in standard deviations."""


@dataclass(frozen=True)
class Verdict:
    """Which parts of a caption an image shows; only the background if the number of objects is wrong."""

    background: bool
    objects: bool
    shapes: bool
    colours: bool
    relation: bool
    sizes: bool

    @property
    def passed(self) -> bool:
        """Whether the background, all shapes, all colours and the relation match."""
        return self.background and self.objects and self.shapes and self.colours and self.relation

    @property
    def passed_with_size(self) -> bool:
        """Whether all sizes match as well."""
        return self.passed and self.sizes


@dataclass(frozen=True)
class AlignmentScore:
    """Proportions of images in [0, 1]; `relation` is over captions with two objects (nan without any)."""

    n: int
    passed: float
    low: float
    high: float
    """Upper end of the Wilson 95 % interval of `passed`; `low` is its lower end."""
    background: float
    objects: float
    shapes: float
    colours: float
    relation: float
    sizes: float
    passed_with_size: float


def check_caption(reading: SceneReading, caption: str) -> Verdict:
    """Compare a scene with a caption; of the two ways to pair two objects, the better one counts."""
    scene = parse(caption)
    background, objects = reading.background == scene.background, reading.objects
    if objects is None or len(objects) != len(scene.things):
        return Verdict(background, *[False] * 5)
    pairings = [objects] if len(objects) == 1 else [objects, objects[::-1]]
    best = max((_match(pairing, scene) for pairing in pairings), key=lambda m: (sum(m[0]) + sum(m[1]), m[2]))
    shapes, colours, relation, sizes = best
    return Verdict(background, True, all(shapes), all(colours), relation, all(sizes))


def score_alignment(images: UInt8[Tensor, "b 3 h w"] | Image, captions: Sequence[str]) -> AlignmentScore:
    """Return the proportions of images that show what their captions say."""
    scenes = read_scenes(images)
    return _summarize([check_caption(r, c) for r, c in zip(scenes, captions, strict=True)], captions)


def score_chance(
    images: UInt8[Tensor, "b 3 h w"] | Image, captions: Sequence[str], seed: int = 0, rounds: int = 10
) -> AlignmentScore:
    """Return the score with other images' captions: up to `rounds` shifts of a shuffled order."""
    n = len(captions)
    if n < 2:
        raise InvalidValue(f"the chance level needs >= 2 captions, not {n}")
    readings = read_scenes(images)
    order = torch.randperm(n, generator=rng.generator(seed, 0, "chance")).tolist()
    pairs = [(order[i], order[(i + shift) % n]) for shift in range(1, min(rounds + 1, n)) for i in range(n)]
    verdicts = [check_caption(readings[i], captions[j]) for i, j in pairs]
    return _summarize(verdicts, [captions[j] for _, j in pairs])


def table(scores: Mapping[str, AlignmentScore]) -> str:
    """Return a text table with one row per score, in per cent."""
    names = [f.name for f in fields(AlignmentScore) if f.name not in ("n", "passed", "low", "high")]
    width = max(len(label) for label in scores)
    titles = "  ".join(f"{name.removeprefix('passed_').replace('_', ' '):>10}" for name in names)
    rows = [f"{'':{width}}  {'n':>5}  {'passed':>6}  {'95 %':>13}  {titles}"]
    for label, s in scores.items():
        start = (
            f"{label:{width}}  {s.n:5d}  {100 * s.passed:6.1f}  {100 * s.low:5.1f} – {100 * s.high:5.1f}  "
        )
        rows.append(start + "  ".join(f"{100 * getattr(s, n):10.1f}" for n in names))
    return "\n".join(rows)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927)."""
    p, z2 = successes / n, Z_95**2
    middle, half = p + z2 / (2 * n), Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def _summarize(verdicts: Sequence[Verdict], captions: Sequence[str]) -> AlignmentScore:
    def proportion(name: str, verdicts: Sequence[Verdict] = verdicts) -> float:
        return sum(getattr(v, name) for v in verdicts) / len(verdicts) if verdicts else math.nan

    n, num_passed = len(verdicts), sum(v.passed for v in verdicts)
    with_relation = [v for v, c in zip(verdicts, captions, strict=True) if parse(c).relation]
    rest = {name: proportion(name) for name in ("background", "objects", "shapes", "colours", "sizes")}
    low, high = wilson_interval(num_passed, n)
    return AlignmentScore(
        n,
        num_passed / n,
        low,
        high,
        **rest,
        relation=proportion("relation", with_relation),
        passed_with_size=proportion("passed_with_size"),
    )


def _match(
    objects: Sequence[DetectedObject], scene: Scene
) -> tuple[list[bool], list[bool], bool, list[bool]]:
    """Return which shapes match, which colours, whether the relation does, and which sizes."""
    pairs: list[tuple[DetectedObject, Thing]] = list(zip(objects, scene.things, strict=True))
    shapes, colours = [o.shape == t.shape for o, t in pairs], [o.colour == t.colour for o, t in pairs]
    return shapes, colours, _has_relation(objects, scene.relation), [o.size == t.size for o, t in pairs]


def _has_relation(objects: Sequence[DetectedObject], relation: str | None) -> bool:
    if relation is None:
        return True
    first, second = objects
    x, y = first.x - second.x, first.y - second.y
    dx, dy = RELATIONS[relation]
    return x * dx + y * dy > abs(x * dy) + abs(y * dx)
