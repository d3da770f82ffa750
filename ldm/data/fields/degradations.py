"""Small and spoilt versions of a image, for super-resolution, and its edges."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Generator, Tensor
from torch.nn.functional import conv2d, interpolate, pad

from ldm import rng
from ldm.errors import InvalidValue

RESAMPLINGS = ("area", "bilinear", "bicubic")


@dataclass
class Downsampled:
    """`small` is the image reduced by `factor`, antialiased bicubic."""

    factor: int

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        size = _reduced(row["image"], self.factor)
        return {"small": interpolate(row["image"][None], size, mode="bicubic", antialias=True)[0]}


@dataclass
class BSRGANDegradation:
    """`small` is the image blurred, reduced, noised and JPEG-coded, in an order drawn at random.

    Zhang et al. (2021), BSRGAN, section 3: two blurs, one isotropic and one not, a reduction by one of three
    resamplings, Gaussian noise and JPEG coding, shuffled, and JPEG coding once more at the end.

    Args:
        seed: of all that is drawn, keyed by (seed, position).
        blur: the largest standard deviation, in pixels of the large image.
        noise: the largest standard deviation, of 255.
        quality: the lowest of JPEG coding; the highest is 95.
    """

    factor: int
    seed: int
    blur: float = 2.0
    noise: float = 10.0
    quality: int = 40

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        draw = rng.generator(self.seed, position, "degradation")
        size = _reduced(row["image"], self.factor)
        x = row["image"].float()
        ways = (self._blurred_evenly, self._blurred_askew, self._resized, self._noised, self._coded)
        for i in torch.randperm(len(ways), generator=draw).tolist():
            x = ways[i](x, size, draw)
        return {"small": self._coded(x, size, draw).round().clamp(0, 255).to(torch.uint8)}

    def _blurred_evenly(self, x: Tensor, size: tuple[int, int], draw: Generator) -> Tensor:
        width = self._width(draw, x, size)
        return blur(x, width, width, 0.0)

    def _blurred_askew(self, x: Tensor, size: tuple[int, int], draw: Generator) -> Tensor:
        across, along = self._width(draw, x, size), self._width(draw, x, size)
        return blur(x, across, along, math.pi * _u(draw))

    def _resized(self, x: Tensor, size: tuple[int, int], draw: Generator) -> Tensor:
        return resize(x, size, RESAMPLINGS[int(3 * _u(draw))])

    def _noised(self, x: Tensor, size: tuple[int, int], draw: Generator) -> Tensor:
        return x + self.noise * _u(draw) * torch.randn(x.shape, generator=draw)

    def _width(self, draw: Generator, x: Tensor, size: tuple[int, int]) -> float:
        # after the reduction the same blur is a smaller number of pixels
        return max(0.1, self.blur * _u(draw) * (1 / self.factor if x.shape[1] == size[0] else 1))

    def _coded(self, x: Tensor, size: tuple[int, int], draw: Generator) -> Tensor:
        quality = self.quality + int(_u(draw) * (96 - self.quality))
        return jpeg(x.round().clamp(0, 255).to(torch.uint8), quality).float()


@dataclass
class NoiseAugmentation:
    """`noise_level`, a time in 1..most, and `noise` in the small image's shape (Ho et al. 2022, 4.2)."""

    most: int
    seed: int

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        draw = rng.generator(self.seed, position, "noise augmentation")
        level = torch.randint(1, self.most + 1, (), generator=draw)
        return {"noise_level": level, "noise": torch.randn(row["small"].shape, generator=draw)}


class Edges:
    """`edges` is min(1, |∇ luma| / 255), as [-1, 1], by Scharr's filter."""

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        return {"edges": edges(row["image"])}


def edges(image: UInt8[Tensor, "c h w"]) -> Float[Tensor, "1 h w"]:
    """The strength of the edges in a image's luma, of other bands than RGB in their mean: [-1, 1]."""
    n = len(image)
    weights = torch.tensor([0.299, 0.587, 0.114]) if n == 3 else torch.full((n,), 1 / n)
    luma = (image.float() * weights[:, None, None]).sum(0)
    across = torch.tensor([[-3.0, 0, 3], [-10, 0, 10], [-3, 0, 3]]) / 16
    around = pad(luma[None, None], (1, 1, 1, 1), mode="replicate")
    gradient = conv2d(around, torch.stack([across, across.T])[:, None])
    return 2 * (gradient.norm(dim=1) / 255).clamp(max=1) - 1


def blur(x: Float[Tensor, "c h w"], across: float, along: float, angle: float) -> Float[Tensor, "c h w"]:
    """x convolved with a Gaussian of two standard deviations, turned by an angle."""
    reach = max(1, math.ceil(3 * max(across, along)))
    reach = min(reach, min(x.shape[1:]) - 1)
    offset = torch.arange(-reach, reach + 1.0)
    dy, dx = torch.meshgrid(offset, offset, indexing="ij")
    u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
    kernel = torch.exp(-((u / across).square() + (v / along).square()) / 2)
    around = pad(x[:, None], [reach] * 4, mode="reflect")
    return conv2d(around, (kernel / kernel.sum())[None, None])[:, 0]


def resize(x: Float[Tensor, "c h w"], size: tuple[int, int], by: str) -> Float[Tensor, "c h2 w2"]:
    """x at another size; the two smooth resamplings are antialiased."""
    smooth = {} if by == "area" else {"antialias": True, "align_corners": False}
    return interpolate(x[None], size, mode=by, **smooth)[0]


def jpeg(x: UInt8[Tensor, "c h w"], quality: int) -> UInt8[Tensor, "c h w"]:
    """x as JPEG leaves it: RGB as colours, other bands each as a grey image."""
    if len(x) == 3:
        return torch.from_numpy(_jpeg(x.permute(1, 2, 0).numpy(), quality)).permute(2, 0, 1)
    return torch.stack([torch.from_numpy(_jpeg(band.numpy(), quality)) for band in x])


def _jpeg(pixels: UInt8[np.ndarray, "..."], quality: int) -> UInt8[np.ndarray, "..."]:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def _reduced(image: Tensor, factor: int) -> tuple[int, int]:
    height, width = image.shape[-2:]
    if height % factor or width % factor:
        raise InvalidValue(f"a image of {height}x{width} does not divide by the factor {factor}")
    return height // factor, width // factor


def _u(draw: Generator) -> float:
    return float(torch.rand((), generator=draw))
