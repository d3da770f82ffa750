"""Small images in every Pillow mode, container, EXIF orientation and transparency, with the right values.

The scene is 3 x 2 blocks, all different, so that every orientation shows another image. The values are
written out here and computed without the code under test.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import product

import numpy as np
from PIL import Image

BLOCK = 8
COLOURS = np.array(
    [[(200, 30, 30), (20, 180, 60), (30, 60, 220)], [(250, 220, 40), (120, 20, 140), (240, 240, 250)]]
)
GREYS = np.array([[0, 255, 40], [90, 200, 150]])
ALPHAS = {"opaque": None, "hole": [[0, 255, 255], [255, 255, 255]], "half": [[0, 128, 255], [255, 64, 255]]}
"""The opacity of the blocks."""

CONTAINERS = {
    "PNG": ("1", "L", "LA", "P", "I;16", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": tuple("1 L LA P PA I I;16 I;16B F RGB RGBA RGBX CMYK YCbCr LAB".split()),
    "AVIF": ("L", "RGB", "RGBA"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
    "JPEG2000": ("L", "LA", "I;16", "RGB", "RGBA"),
    "PPM": ("1", "L", "I;16", "F", "RGB"),
    "rendered": ("1", "L", "LA", "La", "P", "PA", "I;16", "F", "RGB", "RGBA", "RGBa", "CMYK", "HSV", "LAB"),
}
"""The modes that Pillow stores in each container as they are; a rendered image is in none."""
ORIENTED = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")
"""The containers that can state an orientation."""
OPTIONS = {
    "JPEG": {"quality": 98, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}
TOLERANCES = {"JPEG": 5, "AVIF": 3, "YCbCr": 3, "LAB": 8, "La": 3, "RGBa": 3, "HSV": 5}
HOLES = {"PNG": ("1", "L", "P", "I;16", "RGB"), "GIF": ("L", "P")}
"""Modes without alpha in which one value may be transparent."""
DEEP = ("I", "I;16", "I;16B", "F")
GREY_ONLY = ("1", "L", "LA", "La", *DEEP)

# the stored pixel (r, c) of an image that is `h` x `w` once upright, by its EXIF orientation: the standard
# says where the stored top row and left column belong
STORED: dict[int, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    1: lambda r, c, h, w: (r, c),
    2: lambda r, c, h, w: (r, w - 1 - c),  # the left column is at the right
    3: lambda r, c, h, w: (h - 1 - r, w - 1 - c),
    4: lambda r, c, h, w: (h - 1 - r, c),  # the top row is at the bottom
    5: lambda r, c, h, w: (c, r),
    6: lambda r, c, h, w: (c, w - 1 - r),  # the top row is at the right, the left column at the top
    7: lambda r, c, h, w: (h - 1 - c, w - 1 - r),
    8: lambda r, c, h, w: (h - 1 - c, r),  # the top row is at the left, the left column at the bottom
}


def stored_pixels(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Return the pixels that a file of this orientation stores."""
    h, w = upright.shape[:2]
    rows, columns = (h, w) if orientation < 5 else (w, h)
    r, c = np.mgrid[:rows, :columns]
    return upright[STORED[orientation](r, c, h, w)]


@dataclass(frozen=True)
class Case:
    """One file: how it is stored, and whether its colours are greys."""

    mode: str
    container: str
    orientation: int = 1
    alpha: str = "opaque"
    grey: bool = True

    def __str__(self) -> str:
        kind = "greys" if self.grey else "colours"
        return f"{self.mode} {self.container} {self.orientation} {self.alpha} {kind}"

    @property
    def levels(self) -> np.ndarray:
        """The grey of each block, 0..255."""
        return np.where(GREYS > 127, 255, 0) if self.mode == "1" else GREYS

    @property
    def blocks(self) -> np.ndarray:
        """The colour of each block."""
        return np.stack([self.levels] * 3, -1) if self.grey else COLOURS

    @property
    def opacity(self) -> np.ndarray:
        """The opacity of each block, 0..1; where one value is transparent, of all blocks that have it."""
        if self.mode == "1" and self.alpha == "hole":
            return (self.levels != 0).astype(float)
        alpha = ALPHAS[self.alpha]
        return np.ones((2, 3)) if alpha is None else np.array(alpha) / 255

    @property
    def tolerance(self) -> int:
        """By how much the values may differ."""
        return max(TOLERANCES.get(self.container, 0), TOLERANCES.get(self.mode, 0), 1)

    def rgb(self, background: int = 255) -> np.ndarray:
        """Return the upright image on a background of one grey."""
        opacity = self.opacity[..., None]
        return enlarge(opacity * self.blocks + (1 - opacity) * background)

    def labels(self) -> np.ndarray | str:
        """Return the upright label map that this file is, or why it is refused."""
        if self.container != "PNG":
            return "may change labels"
        if self.mode == "I;16":
            return "has the label 65535"
        if self.mode not in ("1", "L", "P"):
            return f"has mode {self.mode}"
        return indices() if self.mode == "P" else enlarge(self.levels // (255 if self.mode == "1" else 1))

    def grey_map(self) -> np.ndarray | str:
        """Return the upright grey map, 0..1, that this file is, or why it is refused."""
        if (self.opacity < 1).any():
            return "transparent pixels"
        return self.mask()

    def mask(self) -> np.ndarray | str:
        """Return how white the upright mask is, 0..1, or why it is refused."""
        if not self.grey:
            return "has colours"
        if self.mode == "I":
            return "32-bit"
        return enlarge(self.levels / 255 * self.opacity)

    def data(self) -> bytes:
        """Return the bytes of the file."""
        file, image, options = BytesIO(), stored_image(self), dict(OPTIONS.get(self.container, {}))
        if self.orientation > 1:
            exif = Image.Exif()
            exif[0x0112] = self.orientation
            options["exif"] = exif
        if self.alpha != "opaque" and self.mode in HOLES.get(self.container, ()):
            options["transparency"] = transparent_value(self)
        image.save(file, self.container, **options)
        return file.getvalue()


def all_cases() -> Iterator[Case]:
    """Yield every mode in every container, orientation and transparency that they can have."""
    for container, modes in CONTAINERS.items():
        for mode, alpha, grey in product(modes, ALPHAS, (True, False)):
            has_alpha = mode in ("LA", "La", "PA", "RGBA", "RGBa") or (mode, container) == ("P", "PNG")
            has_hole = mode in HOLES.get(container, ()) and (grey or mode not in GREY_ONLY)
            if (alpha == "half" and not has_alpha) or (alpha == "hole" and not (has_alpha or has_hole)):
                continue
            if not grey and mode in GREY_ONLY:
                continue
            for orientation in range(1, 9) if container in ORIENTED else (1,):
                yield Case(mode, container, orientation, alpha, grey)


def enlarge(blocks: np.ndarray) -> np.ndarray:
    """Repeat each block's value over its pixels."""
    return blocks.repeat(BLOCK, 0).repeat(BLOCK, 1)


def indices() -> np.ndarray:
    """Return the upright indices into the palette, one per block."""
    return enlarge(np.arange(6).reshape(2, 3)).astype(np.uint8)


def stored_image(case: Case) -> Image.Image:
    """Return the stored pixels of a case in its mode."""

    def stored(blocks: np.ndarray, dtype: type = np.uint8) -> np.ndarray:
        return stored_pixels(enlarge(blocks), case.orientation).astype(dtype)

    mode, colours = case.mode, stored(case.blocks)
    alpha = Image.fromarray(stored((case.opacity * 255).round()))
    if mode in DEEP:
        return deep_image(mode, stored(case.levels, np.float64))
    if mode in ("P", "PA"):
        image = Image.fromarray(stored_pixels(indices(), case.orientation)).convert("P")
        image.putpalette(case.blocks.reshape(-1).astype(np.uint8).tobytes())
        if mode == "P":
            return image
        return with_alpha(image, alpha)
    if mode == "LAB":
        lab = to_lab(colours.reshape(-1, 3)).reshape(colours.shape)
        return Image.merge("LAB", [Image.fromarray(np.ascontiguousarray(lab[..., i])) for i in range(3)])
    if mode == "CMYK":
        ink = np.concatenate([255 - colours, np.zeros_like(colours[..., :1])], -1)
        return Image.fromarray(ink, "CMYK")
    if mode == "RGBX":
        return Image.fromarray(np.concatenate([colours, np.full_like(colours[..., :1], 77)], -1), "RGBX")
    if mode in ("LA", "La", "RGBA", "RGBa"):
        base = Image.fromarray(colours[..., 0]) if mode[0] == "L" else Image.fromarray(colours)
        straight = Image.merge("LA" if mode[0] == "L" else "RGBA", [*base.split(), alpha])
        return straight if mode in ("LA", "RGBA") else straight.convert(mode)
    return Image.fromarray(colours).convert("L" if mode == "1" else mode).convert(mode)


def with_alpha(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """Return a palette image as PA."""
    image = image.convert("PA")
    image.putalpha(alpha)
    return image


def deep_image(mode: str, levels: np.ndarray) -> Image.Image:
    """Return grey levels of 0..255 in a deep mode."""
    if mode == "F":
        return Image.fromarray((levels / 255).astype(np.float32))
    if mode == "I":
        return Image.fromarray((levels * 257).astype(np.int32))
    if mode == "I;16":
        return Image.fromarray((levels * 257).astype(np.uint16))
    size = (levels.shape[1], levels.shape[0])
    return Image.frombytes("I;16B", size, (levels * 257).astype(">u2").tobytes())


def transparent_value(case: Case) -> int | bytes | tuple[int, ...]:
    """Return what to save as the transparent value of an image without alpha."""
    if case.mode == "P":
        alphas = (case.opacity * 255).round().astype(np.uint8).reshape(-1)
        return 0 if case.container == "GIF" else alphas.tobytes()
    if case.mode == "RGB":
        return tuple(int(v) for v in case.blocks[0, 0])
    if case.container == "GIF":
        return 0  # the index of black, the first grey
    return int(case.levels[0, 0]) * (257 if case.mode == "I;16" else 1)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Return sRGB as CIELAB under D50 (Bradford), L* scaled to 0..255 and a*, b* offset by 128."""
    v = rgb / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [
            [0.4360747, 0.3850649, 0.1430804],
            [0.2225045, 0.7168786, 0.0606169],
            [0.0139322, 0.0971045, 0.7141733],
        ]
    )
    xyz = linear @ to_xyz.T / [0.96422, 1, 0.82521]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    lab = [(116 * f[:, 1] - 16) * 2.55, 500 * (f[:, 0] - f[:, 1]) + 128, 200 * (f[:, 1] - f[:, 2]) + 128]
    return np.stack(lab, -1).round().astype(np.uint8)
