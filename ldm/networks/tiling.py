"""Encode and decode images of any size, tile by tile and without seams.

Tiles that pass through a network separately differ at their borders, and everywhere through the statistics of
their group norms. Here every layer runs over all tiles before the next layer starts: a convolution reads a
margin from the neighbouring tiles, and a group norm uses the statistics of the whole map. The result equals
the untiled one up to rounding. Feature maps are kept on the CPU; the device holds one tile of a layer's input
and output, and a whole map only for attention.
"""

from collections.abc import Callable, Iterator
from functools import singledispatch
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.errors import InvalidValue
from ldm.networks.attention import AttentionBlock
from ldm.networks.blocks import Downsample, GroupNorm, ResidualBlock, Upsample

Box: TypeAlias = tuple[int, int, int, int]
"""(top, bottom, left, right) of a tile, in positions of the feature map."""

TileReader: TypeAlias = Callable[[Box], Tensor]
"""Function that returns the part of a map inside a box, on the device."""

Map: TypeAlias = Float[Tensor, "b _ _ _"]
"""A feature map; channels and size depend on the layer."""


def tile_boxes(height: int, width: int, tile: int) -> Iterator[Box]:
    """Yield boxes of side length `tile`, smaller at the borders, that cover a map."""
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            yield top, min(top + tile, height), left, min(left + tile, width)


def spatial_size(x: Map) -> tuple[int, int]:
    """Return (height, width)."""
    return x.shape[2], x.shape[3]


class Tiles:
    """The operations on feature maps, run on `device` for one tile of `tile` × `tile` positions at a time."""

    def __init__(self, tile: int, device: torch.device) -> None:
        if tile < 1:
            raise InvalidValue(
                f"tile={tile}: the side of a tile must be at least 1 position of the feature map"
            )
        self.tile, self.device = tile, device

    def reader(self, x: Map, factor: int = 1) -> TileReader:
        """Return a reader of tiles of x, whose boxes are in units of `factor` positions of x."""

        def read(box: Box) -> Tensor:
            top, bottom, left, right = (factor * edge for edge in box)
            return x[..., top:bottom, left:right].to(self.device)

        return read

    def assemble(self, size: tuple[int, int], read: TileReader, into: Map | None = None) -> Map:
        """Read a map of `size` tile by tile; return it on the CPU, added to `into` if given."""
        for box in tile_boxes(*size, self.tile):
            part, (top, bottom, left, right) = read(box).cpu(), box
            if into is None:
                into = torch.zeros(*part.shape[:2], *size, dtype=part.dtype)
            into[..., top:bottom, left:right] += part
        assert into is not None
        return into

    def convolve(
        self,
        conv: nn.Conv2d,
        size: tuple[int, int],
        read: TileReader,
        pad_before: int = 1,
        stride: int = 1,
        into: Map | None = None,
    ) -> Map:
        """Apply a 3×3 convolution to a map of `size` that `read` returns in tiles; add the result to `into`.

        `pad_before` is the padding at the top and left; positions outside the map are zero.
        """
        height, width = size

        def read_convolved(box: Box) -> Tensor:
            top, bottom, left, right = box
            y0, x0 = stride * top - pad_before, stride * left - pad_before
            y1, x1 = y0 + stride * (bottom - top - 1) + 3, x0 + stride * (right - left - 1) + 3  # exclusive
            inside = max(y0, 0), min(y1, height), max(x0, 0), min(x1, width)
            padding = inside[2] - x0, x1 - inside[3], inside[0] - y0, y1 - inside[1]
            return F.conv2d(F.pad(read(inside), padding), conv.weight, conv.bias, stride)

        return self.assemble((height // stride, width // stride), read_convolved, into)

    def norm_silu(self, norm: GroupNorm, x: Map) -> TileReader:
        """Return a reader of tiles of silu(norm(x)), normalised by the statistics of the whole map x."""
        groups, channels, (height, width) = norm.num_groups, x.shape[1], spatial_size(x)
        read, sums = self.reader(x), torch.zeros(2, len(x), groups, dtype=torch.float64)
        for box in tile_boxes(height, width, self.tile):
            values = read(box).float().unflatten(1, (groups, -1))
            sums += torch.stack([values.sum((2, 3, 4)), values.square().sum((2, 3, 4))]).cpu()
        mean, mean_square = sums / (channels // groups * height * width)
        inverse_std = (mean_square - mean.square() + norm.eps).rsqrt()

        def expand_groups(statistic: Tensor) -> Tensor:
            """Repeat the statistic of each group for all of its channels."""
            per_channel = statistic.float().repeat_interleave(channels // groups, dim=1)
            return per_channel[..., None, None].to(self.device)

        weight = expand_groups(inverse_std) * norm.weight[:, None, None]
        bias = norm.bias[:, None, None] - expand_groups(mean) * weight
        return lambda box: F.silu((read(box).float() * weight + bias).to(x.dtype))


@singledispatch
def forward_tiled(layer: nn.Module, x: Map, tiles: Tiles) -> Map:
    """Return layer(x), with maps on the CPU; raise InvalidValue for a layer without a tiled version."""
    raise InvalidValue(f"{type(layer).__name__} cannot be computed tile by tile: use tile=null")


@torch.no_grad()
def run_tiled(layer: nn.Module, x: Map, tile: int, device: torch.device) -> Map:
    """Return layer(x), computed tile by tile on `device`; x may be on another device."""
    return forward_tiled(layer, x.cpu(), Tiles(tile, device)).to(device)


@forward_tiled.register
def _(layer: nn.Identity, x: Map, tiles: Tiles) -> Map:
    return x


@forward_tiled.register
def _(layers: nn.Sequential, x: Map, tiles: Tiles) -> Map:
    for layer in layers:
        x = forward_tiled(layer, x, tiles)
    return x


@forward_tiled.register
def _(block: ResidualBlock, x: Map, tiles: Tiles) -> Map:
    read, size = tiles.reader(x), spatial_size(x)
    h = tiles.convolve(block.conv1, size, tiles.norm_silu(block.norm1, x))
    out = tiles.assemble(size, lambda box: block.shortcut(read(box)))
    return tiles.convolve(block.conv2, size, tiles.norm_silu(block.norm2, h), into=out)


@forward_tiled.register
def _(block: AttentionBlock, x: Map, tiles: Tiles) -> Map:
    return block(x.to(tiles.device)).cpu()  # every position attends to all others


@forward_tiled.register
def _(layer: Downsample, x: Map, tiles: Tiles) -> Map:
    return tiles.convolve(layer.conv, spatial_size(x), tiles.reader(x), pad_before=0, stride=2)


@forward_tiled.register
def _(layer: Upsample, x: Map, tiles: Tiles) -> Map:
    read, (height, width) = tiles.reader(x), spatial_size(x)

    def read_upsampled(box: Box) -> Tensor:
        top, bottom, left, right = box
        part = read((top // 2, (bottom + 1) // 2, left // 2, (right + 1) // 2))
        part = F.interpolate(part, scale_factor=2.0, mode="nearest")
        return part[..., top % 2 :, left % 2 :][..., : bottom - top, : right - left]

    return tiles.convolve(layer.conv, (2 * height, 2 * width), read_upsampled)
