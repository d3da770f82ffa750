"""Rescalers: from a map in pixels to channels at the latent's size."""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.conditioning.base import Size
from ldm.errors import InvalidValue
from ldm.typing import Channels, Pixels


class Rescaler(nn.Module, ABC):
    """Base class: a map or image of any size to `out_channels` channels at the latent's size.

    Args:
        out_channels: number of channels in `concat`.
    """

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels

    @abstractmethod
    def forward(self, x: Float[Tensor, "b c H W"], size: Size) -> Float[Tensor, "b k h w"]:
        """Rescale a map to the latent's size."""


class Resize(Rescaler):
    """Interpolation: published for depth (bicubic) and for the masks of inpainting (nearest).

    Args:
        channels: of the map.
        mode: of `torch.nn.functional.interpolate`.
        antialias: average over all pixels of a cell (bilinear or bicubic); the published models do not.
    """

    def __init__(
        self,
        channels: Channels,
        mode: Literal["nearest", "area", "bilinear", "bicubic"],
        antialias: bool = False,
    ) -> None:
        super().__init__(channels)
        self.mode, self.antialias = mode, antialias

    def forward(self, x: Float[Tensor, "b c H W"], size: Size) -> Float[Tensor, "b c h w"]:
        if x.shape[-2:] == size:
            return x
        return F.interpolate(x, size, mode=self.mode, antialias=self.antialias)


class MinMaxNormalized(Rescaler):
    """2 (x - min x) / (max x - min x) - 1 per map, after another rescaler; a constant map becomes -1.

    Stable Diffusion 2's depth: only relative depth matters, so maps of any depth estimator share one scale.
    """

    def __init__(self, rescaler: Rescaler) -> None:
        super().__init__(rescaler.out_channels)
        self.rescaler = rescaler

    def forward(self, x: Float[Tensor, "b c H W"], size: Size) -> Float[Tensor, "b k h w"]:
        x = self.rescaler(x, size)
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        return 2 * ((x - low) / (high - low).clamp(min=2e-6)) - 1


class LearnedRescaler(Rescaler):
    """A 1x1 convolution without bias, after the map is halved until it has the latent's size.

    Latent diffusion's rescaler of semantic maps (Rombach et al. 2022, section 4.3.2).

    Args:
        in_channels: of the map.
    """

    def __init__(self, in_channels: Channels, out_channels: Channels) -> None:
        super().__init__(out_channels)
        self.mixed = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c H W"], size: Size) -> Float[Tensor, "b k h w"]:
        halvings = math.log2(x.shape[-1] / size[1])
        if halvings != int(halvings) or x.shape[-2] * size[1] != x.shape[-1] * size[0]:
            raise InvalidValue(
                f"a map of {tuple(x.shape[-2:])} cannot be halved to latents of {size}: the ratio must be "
                "a power of 2, and equal for height and width"
            )
        for _ in range(int(halvings)):
            x = F.interpolate(x, scale_factor=0.5, mode="bilinear")
        return self.mixed(x)


class PixelUnshuffle(Rescaler):
    """Space-to-depth: each pixel of a cell becomes its own channels (the inverse of Shi et al. 2016).

    Lossless, and without parameters.

    Args:
        channels: of the map.
        factor: width of a cell, in pixels of the map.
    """

    def __init__(self, channels: Channels, factor: Pixels) -> None:
        super().__init__(channels * factor**2)
        self.factor = factor

    def forward(self, x: Float[Tensor, "b c H W"], size: Size) -> Float[Tensor, "b k h w"]:
        if x.shape[-2:] != (size[0] * self.factor, size[1] * self.factor):
            raise InvalidValue(
                f"a map of {tuple(x.shape[-2:])} is not {self.factor} times as large as latents of {size}"
            )
        return F.pixel_unshuffle(x, self.factor)


class MaxPoolMask(Rescaler):
    """The maximum over each cell: a latent position is masked if any of its pixels is.

    Args:
        channels: of the map.
    """

    def __init__(self, channels: Channels = 1) -> None:
        super().__init__(channels)

    def forward(self, x: Float[Tensor, "b c H W"], size: Size) -> Float[Tensor, "b c h w"]:
        return F.adaptive_max_pool2d(x, size)
