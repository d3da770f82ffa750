"""What a drawn scene's pixels, places and classes are: exact maps, boxes, class numbers.

A kind of object is a colour and a shape, numbered 0..11 colour by colour: red circle, red square, red
triangle, green circle, and so on in the order of COLOURS and SHAPES.
"""

from collections.abc import Sequence
from hashlib import blake2b
from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from ldm import rng
from ldm.data.demo.drawing import CANVAS, COLOURS, SHAPES, SUPERSAMPLING, Place, Scene, Thing, outline

KINDS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
DEPTHS = {"small": 128, "large": 255}
"""Of depth.png: the background is 0, and what is larger is nearer."""
SCORES = {"small": 4.0, "large": 7.0}
"""Invented, so that a scene has an aesthetic score of 1..10, too."""


def kind(thing: Thing) -> int:
    """The number of an object's colour and shape."""
    return KINDS.index(f"{thing.colour} {thing.shape}")


def segmentation(scene: Scene, places: Sequence[Place], size: int = CANVAS) -> UInt8[np.ndarray, "h w"]:
    """0 for the background, 1 + the object's kind where it covers at least half of a pixel."""
    return _painted(scene, places, size, [1 + kind(thing) for thing in scene.things])


def depth(scene: Scene, places: Sequence[Place], size: int = CANVAS) -> UInt8[np.ndarray, "h w"]:
    """0 for the background, DEPTHS for objects by their size."""
    return _painted(scene, places, size, [DEPTHS[thing.size] for thing in scene.things])


def mask(scene: Scene, places: Sequence[Place], size: int = CANVAS) -> UInt8[np.ndarray, "h w"]:
    """255 in a box somewhere, each side a quarter to a half of the image's, and 0 around it.

    It is drawn by the scene: a image has the same mask wherever it is packed.
    """
    number = blake2b(f"{scene} {places}".encode(), digest_size=4).digest()
    u = rng.uniform(0, [int.from_bytes(number, "little")], "mask", (2, 2))[0]
    sides = ((u[0] + 1) * size / 4).round()
    top, left = (u[1] * (size - sides + 1)).floor().int().tolist()
    height, width = sides.int().tolist()
    found = np.zeros((size, size), np.uint8)
    found[top : top + height, left : left + width] = 255
    return found


def boxes(scene: Scene, places: Sequence[Place]) -> list[list[float]]:
    """[kind, left, top, right, bottom] of each object, in [0, 1] of the image."""
    return [
        [kind(thing), *(c / CANVAS for c in _corners(spot))]
        for thing, spot in zip(scene.things, places, strict=True)
    ]


def score(scene: Scene) -> float:
    """The mean of SCORES over the objects: nobody's taste, but a number that a image shows."""
    return sum(SCORES[thing.size] for thing in scene.things) / len(scene.things)


def members(scene: Scene, places: Sequence[Place], size: int = CANVAS) -> dict[str, bytes]:
    """The scene's class, that of the object named first, and its maps, as files of a shard."""
    return {
        "cls": str(kind(scene.things[0])).encode(),
        "seg.png": _png(segmentation(scene, places, size)),
        "depth.png": _png(depth(scene, places, size)),
        "mask.png": _png(mask(scene, places, size)),
    }


def _corners(spot: Place) -> tuple[float, float, float, float]:
    half = spot.across / 2
    return spot.x - half, spot.y - half, spot.x + half, spot.y + half


def _painted(
    scene: Scene, places: Sequence[Place], size: int, values: Sequence[int]
) -> UInt8[np.ndarray, "h w"]:
    found = np.zeros((size, size), np.uint8)
    side = SUPERSAMPLING * size
    for thing, spot, value in zip(scene.things, places, values, strict=True):
        layer = Image.new("L", (side, side))
        outline(ImageDraw.Draw(layer), thing.shape, spot, side / CANVAS, 255)
        found[np.asarray(layer.reduce(SUPERSAMPLING)) >= 128] = value
    return found


def _png(array: UInt8[np.ndarray, "h w"]) -> bytes:
    file = BytesIO()
    Image.fromarray(array).save(file, "PNG", compress_level=1)
    return file.getvalue()
