"""Exact ground truth of a scene: per-pixel maps, boxes, class indices.

The kinds of objects are colours and shapes, numbered 0..11 colour by colour: red circle, red square, red
triangle, green circle, and so on in the order of COLOURS and SHAPES.
"""

from collections.abc import Sequence
from hashlib import blake2b
from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from ldm import rng
from ldm.data.demo.drawing import CANVAS, COLOURS, SHAPES, SUPERSAMPLING, Place, Scene, Thing, draw_shape

KINDS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
DEPTHS = {"small": 128, "large": 255}
"""Values in depth.png: the background is 0, and larger objects are nearer."""
SCORES = {"small": 4.0, "large": 7.0}
"""Made up, to give a scene an aesthetic score in 1..10."""


def kind_index(thing: Thing) -> int:
    """Return the index of an object's colour and shape in KINDS."""
    return KINDS.index(f"{thing.colour} {thing.shape}")


def segmentation(scene: Scene, places: Sequence[Place], size: int = CANVAS) -> UInt8[np.ndarray, "h w"]:
    """Return 0 for the background, 1 + the index of an object's kind where it covers half a pixel or more."""
    return _paint(scene, places, size, [1 + kind_index(thing) for thing in scene.things])


def depth(scene: Scene, places: Sequence[Place], size: int = CANVAS) -> UInt8[np.ndarray, "h w"]:
    """Return 0 for the background and DEPTHS[size] for each object."""
    return _paint(scene, places, size, [DEPTHS[thing.size] for thing in scene.things])


def mask(scene: Scene, places: Sequence[Place], size: int = CANVAS) -> UInt8[np.ndarray, "h w"]:
    """Return 255 in a random box, each side a quarter to a half of the image's, and 0 around it.

    It is keyed by the scene, so an image has the same mask whatever its position and split.
    """
    # the key is the dataclasses' repr: renaming Scene, Thing, Place or their attributes changes every mask
    key = blake2b(f"{scene} {places}".encode(), digest_size=4).digest()
    u = rng.uniform(0, [int.from_bytes(key, "little")], "mask", (2, 2))[0]
    sides = ((u[0] + 1) * size / 4).round()
    top, left = (u[1] * (size - sides + 1)).floor().int().tolist()
    height, width = sides.int().tolist()
    values = np.zeros((size, size), np.uint8)
    values[top : top + height, left : left + width] = 255
    return values


def boxes(scene: Scene, places: Sequence[Place]) -> list[list[float]]:
    """Return [kind index, left, top, right, bottom] of each object, in [0, 1] of the image."""
    return [
        [kind_index(thing), *(c / CANVAS for c in _corners(place))]
        for thing, place in zip(scene.things, places, strict=True)
    ]


def score(scene: Scene) -> float:
    """Return the mean of SCORES over the objects: no judgement of taste, but visible in the image."""
    return sum(SCORES[thing.size] for thing in scene.things) / len(scene.things)


def members(scene: Scene, places: Sequence[Place], size: int = CANVAS) -> dict[str, bytes]:
    """Return the scene's class, which is the kind of its first object, and its maps, as files of a shard."""
    return {
        "cls": str(kind_index(scene.things[0])).encode(),
        "seg.png": _encode_png(segmentation(scene, places, size)),
        "depth.png": _encode_png(depth(scene, places, size)),
        "mask.png": _encode_png(mask(scene, places, size)),
    }


def _corners(place: Place) -> tuple[float, float, float, float]:
    half = place.across / 2
    return place.x - half, place.y - half, place.x + half, place.y + half


def _paint(
    scene: Scene, places: Sequence[Place], size: int, values: Sequence[int]
) -> UInt8[np.ndarray, "h w"]:
    canvas = np.zeros((size, size), np.uint8)
    side = SUPERSAMPLING * size
    for thing, place, value in zip(scene.things, places, values, strict=True):
        layer = Image.new("L", (side, side))
        draw_shape(ImageDraw.Draw(layer), thing.shape, place, side / CANVAS, 255)
        canvas[np.asarray(layer.reduce(SUPERSAMPLING)) >= 128] = value
    return canvas


def _encode_png(array: UInt8[np.ndarray, "h w"]) -> bytes:
    file = BytesIO()
    Image.fromarray(array).save(file, "PNG", compress_level=1)
    return file.getvalue()
