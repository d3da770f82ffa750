"""Low-resolution and degraded versions of an image, for super-resolution, and its edges."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Generator, Tensor
from torch.nn.functional import conv2d, interpolate, pad

from ldm import rng
from ldm.errors import InvalidValue
from ldm.typing import Pixels, PositiveInt, Range, Seed

RESAMPLINGS = ("area", "bilinear", "bicubic")


@dataclass
class Downsampled:
    """`small` is the image downsampled by `factor`, antialiased bicubic."""

    factor: Pixels

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        size = _small_size(row["image"], self.factor)
        return {"small": interpolate(row["image"][None], size, mode="bicubic", antialias=True)[0]}


@dataclass
class BSRGANDegradation:
    """`small` is the image blurred, downsampled, noised and JPEG-compressed, in random order.

    Zhang et al. (2021), BSRGAN, section 3: an isotropic and an anisotropic blur, downsampling by one of three
    resamplings, Gaussian noise and JPEG compression, shuffled, and JPEG compression once more at the end.

    Args:
        seed: all randomness is keyed by (seed, position).
        blur: the largest standard deviation, in pixels of the large image.
        noise: the largest standard deviation, on the scale of 0..255.
        quality: the lowest JPEG quality; the highest is 95.
    """

    factor: Pixels
    seed: Seed
    blur: Annotated[float, Range(0, 100)] = 2.0
    noise: Annotated[float, Range(0, 255)] = 10.0
    quality: Annotated[int, Range(1, 95)] = 40

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        generator = rng.generator(self.seed, position, "degradation")
        size = _small_size(row["image"], self.factor)
        x = row["image"].float()
        steps = (
            self._blur_isotropic,
            self._blur_anisotropic,
            self._downsample,
            self._add_noise,
            self._compress,
        )
        for i in torch.randperm(len(steps), generator=generator).tolist():
            x = steps[i](x, size, generator)
        return {"small": self._compress(x, size, generator).round().clamp(0, 255).to(torch.uint8)}

    def _blur_isotropic(self, x: Tensor, size: tuple[int, int], generator: Generator) -> Tensor:
        std = self._sample_blur_std(generator, x, size)
        return blur(x, std, std, 0.0)

    def _blur_anisotropic(self, x: Tensor, size: tuple[int, int], generator: Generator) -> Tensor:
        std_u, std_v = (self._sample_blur_std(generator, x, size) for _ in range(2))
        return blur(x, std_u, std_v, math.pi * _uniform(generator))

    def _downsample(self, x: Tensor, size: tuple[int, int], generator: Generator) -> Tensor:
        return resize(x, size, RESAMPLINGS[int(3 * _uniform(generator))])

    def _add_noise(self, x: Tensor, size: tuple[int, int], generator: Generator) -> Tensor:
        return x + self.noise * _uniform(generator) * torch.randn(x.shape, generator=generator)

    def _sample_blur_std(self, generator: Generator, x: Tensor, size: tuple[int, int]) -> float:
        # once the image is downsampled, the same blur spans fewer pixels
        return max(0.1, self.blur * _uniform(generator) * (1 / self.factor if x.shape[1] == size[0] else 1))

    def _compress(self, x: Tensor, size: tuple[int, int], generator: Generator) -> Tensor:
        quality = self.quality + int(_uniform(generator) * (96 - self.quality))
        return compress_jpeg(x.round().clamp(0, 255).to(torch.uint8), quality).float()


@dataclass
class NoiseAugmentation:
    """`noise_level`, a time in 1..max_noise_level, and `noise` like `small` (Ho et al. 2022, 4.2)."""

    max_noise_level: PositiveInt
    seed: Seed

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        generator = rng.generator(self.seed, position, "noise augmentation")
        level = torch.randint(1, self.max_noise_level + 1, (), generator=generator)
        return {"noise_level": level, "noise": torch.randn(row["small"].shape, generator=generator)}


class Edges:
    """`edges` is min(1, |∇ luma| / 255) by Scharr's filter, scaled to [-1, 1]."""

    def __call__(self, row: Mapping[str, Any], position: int) -> dict[str, Tensor]:
        return {"edges": edge_map(row["image"])}


def edge_map(image: UInt8[Tensor, "c h w"]) -> Float[Tensor, "1 h w"]:
    """Return the edge strength in [-1, 1] of the luma, or of the mean band of images that are not RGB."""
    n = len(image)
    weights = torch.tensor([0.299, 0.587, 0.114]) if n == 3 else torch.full((n,), 1 / n)
    luma = (image.float() * weights[:, None, None]).sum(0)
    scharr = torch.tensor([[-3.0, 0, 3], [-10, 0, 10], [-3, 0, 3]]) / 16
    padded = pad(luma[None, None], (1, 1, 1, 1), mode="replicate")
    gradient = conv2d(padded, torch.stack([scharr, scharr.T])[:, None])
    return 2 * (gradient.norm(dim=1) / 255).clamp(max=1) - 1


def blur(x: Float[Tensor, "c h w"], std_u: float, std_v: float, angle: float) -> Float[Tensor, "c h w"]:
    """Convolve with an anisotropic Gaussian whose first axis lies at `angle` (radians) to the rows."""
    radius = max(1, math.ceil(3 * max(std_u, std_v)))
    radius = min(radius, min(x.shape[1:]) - 1)
    offset = torch.arange(-radius, radius + 1.0)
    dy, dx = torch.meshgrid(offset, offset, indexing="ij")
    u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
    kernel = torch.exp(-((u / std_u).square() + (v / std_v).square()) / 2)
    padded = pad(x[:, None], [radius] * 4, mode="reflect")
    return conv2d(padded, (kernel / kernel.sum())[None, None])[:, 0]


def resize(x: Float[Tensor, "c h w"], size: tuple[int, int], mode: str) -> Float[Tensor, "c h2 w2"]:
    """Resize by one of `RESAMPLINGS`; bilinear and bicubic are antialiased."""
    smooth = {} if mode == "area" else {"antialias": True, "align_corners": False}
    return interpolate(x[None], size, mode=mode, **smooth)[0]


def compress_jpeg(x: UInt8[Tensor, "c h w"], quality: int) -> UInt8[Tensor, "c h w"]:
    """Encode and decode as JPEG: RGB in colour, other bands each as a grey image."""
    if len(x) == 3:
        return torch.from_numpy(_compress_jpeg(x.permute(1, 2, 0).numpy(), quality)).permute(2, 0, 1)
    return torch.stack([torch.from_numpy(_compress_jpeg(band.numpy(), quality)) for band in x])


def _compress_jpeg(pixels: UInt8[np.ndarray, "..."], quality: int) -> UInt8[np.ndarray, "..."]:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def _small_size(image: Tensor, factor: int) -> tuple[int, int]:
    height, width = image.shape[-2:]
    if height % factor or width % factor:
        raise InvalidValue(
            f"factor={factor} does not divide an image of {height}x{width}: set data.size to a multiple of it"
        )
    return height // factor, width // factor


def _uniform(generator: Generator) -> float:
    return float(torch.rand((), generator=generator))
