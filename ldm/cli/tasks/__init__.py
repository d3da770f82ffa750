"""What sample.py does, by `task=NAME`: one class each, one file a kind."""

from ldm.cli.tasks.base import Inputs, Txt2Img, Wanted, draw, latent, others, picture_size
from ldm.cli.tasks.conditional import (
    Class,
    FromMap,
    ImageVariation,
    InpaintingModel,
    Layout,
    Semantic,
    SuperResolution,
    Unconditional,
)
from ldm.cli.tasks.files import read_picture
from ldm.cli.tasks.img2img import Img2Img
from ldm.cli.tasks.inpaint import Inpaint
from ldm.cli.tasks.interpolate import Interpolate
from ldm.cli.tasks.invert import Invert

__all__ = [
    "Class",
    "FromMap",
    "ImageVariation",
    "Img2Img",
    "Inpaint",
    "InpaintingModel",
    "Inputs",
    "Interpolate",
    "Invert",
    "Layout",
    "Semantic",
    "SuperResolution",
    "Txt2Img",
    "Unconditional",
    "Wanted",
    "draw",
    "latent",
    "others",
    "picture_size",
    "read_picture",
]
