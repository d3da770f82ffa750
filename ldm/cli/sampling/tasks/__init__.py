"""What sample.py does, by `task=NAME`: one class each, one file a kind."""

from ldm.cli.sampling.tasks.base import (
    SampleSpec,
    SamplingContext,
    Txt2Img,
    additional_tasks,
    encode_image,
    output_size,
    sample_images,
)
from ldm.cli.sampling.tasks.conditional import (
    Class,
    FromMap,
    ImageVariation,
    InpaintingModel,
    Layout,
    Semantic,
    SuperResolution,
    Unconditional,
)
from ldm.cli.sampling.tasks.img2img import Img2Img
from ldm.cli.sampling.tasks.inpaint import Inpaint
from ldm.cli.sampling.tasks.inputs import read_image
from ldm.cli.sampling.tasks.interpolate import Interpolate
from ldm.cli.sampling.tasks.invert import Invert

__all__ = [
    "Class",
    "FromMap",
    "ImageVariation",
    "Img2Img",
    "Inpaint",
    "InpaintingModel",
    "SamplingContext",
    "Interpolate",
    "Invert",
    "Layout",
    "Semantic",
    "SuperResolution",
    "Txt2Img",
    "Unconditional",
    "SampleSpec",
    "sample_images",
    "encode_image",
    "additional_tasks",
    "output_size",
    "read_image",
]
