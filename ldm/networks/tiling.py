"""Images of any size through a first stage, tile by tile and without a seam.

Tiles that pass a network alone differ at their borders, and everywhere by the statistics of their group
norms. Here every layer runs over all tiles before the next begins: a convolution's tile sees its neighbours'
pixels, and a norm takes its statistics over the whole map. The result is the untiled one but for rounding.
Maps wait on the CPU; the device holds a tile of each layer's input and output, and, of attention, a map.
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
"""Top, bottom, left, right of a part of a map, in its places."""

Source: TypeAlias = Callable[[Box], Tensor]
"""Gives a part of a map, on the device."""

Map: TypeAlias = Float[Tensor, "b _ _ _"]
"""Its channels and size are the layer's own."""


def boxes(height: int, width: int, tile: int) -> Iterator[Box]:
    """Squares of side `tile` that cover a map."""
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            yield top, min(top + tile, height), left, min(left + tile, width)


def size_of(x: Map) -> tuple[int, int]:
    """(height, width)."""
    return x.shape[2], x.shape[3]


class Tiles:
    """Computes layers on `device`, `tile` places of a map a side at a time."""

    def __init__(self, tile: int, device: torch.device) -> None:
        if tile < 1:
            raise InvalidValue(f"a tile has at least 1 place a side, not {tile}")
        self.tile, self.device = tile, device

    def part(self, x: Map, factor: int = 1) -> Source:
        """Parts of a map whose places are `factor` × `factor` places of x."""

        def source(box: Box) -> Tensor:
            top, bottom, left, right = (factor * side for side in box)
            return x[..., top:bottom, left:right].to(self.device)

        return source

    def computed(self, size: tuple[int, int], source: Source, into: Map | None = None) -> Map:
        """A map of `size` from its parts, added to `into`."""
        for box in boxes(*size, self.tile):
            part, (top, bottom, left, right) = source(box).cpu(), box
            if into is None:
                into = torch.zeros(*part.shape[:2], *size, dtype=part.dtype)
            into[..., top:bottom, left:right] += part
        assert into is not None
        return into

    def convolved(
        self,
        conv: nn.Conv2d,
        size: tuple[int, int],
        source: Source,
        before: int = 1,
        stride: int = 1,
        into: Map | None = None,
    ) -> Map:
        """A 3×3 convolution of a map of `size` that `source` gives part by part, added to `into`.

        `before` is the padding at the top and left; what lies outside of the map is zero.
        """
        height, width = size

        def part(box: Box) -> Tensor:
            top, bottom, left, right = box
            a, b, c, d = (stride * n - before for n in (top, bottom - 1, left, right - 1))
            b, d = b + 3, d + 3  # the kernel's last place, and one
            inside = max(a, 0), min(b, height), max(c, 0), min(d, width)
            outside = inside[2] - c, d - inside[3], inside[0] - a, b - inside[1]
            return F.conv2d(F.pad(source(inside), outside), conv.weight, conv.bias, stride)

        return self.computed((height // stride, width // stride), part, into)

    def normalized(self, norm: GroupNorm, x: Map) -> Source:
        """silu(norm(x)) part by part, with the statistics of all of x."""
        groups, channels, (height, width) = norm.num_groups, x.shape[1], size_of(x)
        source, sums = self.part(x), torch.zeros(2, len(x), groups, dtype=torch.float64)
        for box in boxes(height, width, self.tile):
            values = source(box).float().unflatten(1, (groups, -1))
            sums += torch.stack([values.sum((2, 3, 4)), values.square().sum((2, 3, 4))]).cpu()
        mean, square = sums / (channels // groups * height * width)
        scale = (square - mean.square() + norm.eps).rsqrt()

        def each(statistic: Tensor) -> Tensor:
            """One number a channel."""
            spread = statistic.float().repeat_interleave(channels // groups, dim=1)
            return spread[..., None, None].to(self.device)

        weight = each(scale) * norm.weight[:, None, None]
        bias = norm.bias[:, None, None] - each(mean) * weight
        return lambda box: F.silu((source(box).float() * weight + bias).to(x.dtype))


@singledispatch
def tiled(layer: nn.Module, x: Map, tiles: Tiles) -> Map:
    """layer(x), its maps on the CPU. A layer that can says how beside its class; ValueError for others."""
    raise InvalidValue(f"{type(layer).__name__} cannot be computed tile by tile: give tile=null")


@torch.no_grad()
def run(layer: nn.Module, x: Map, tile: int, device: torch.device) -> Map:
    """layer(x) tile by tile, on the device; x may wait elsewhere."""
    return tiled(layer, x.cpu(), Tiles(tile, device)).to(device)


@tiled.register
def _(layer: nn.Identity, x: Map, tiles: Tiles) -> Map:
    return x


@tiled.register
def _(layers: nn.Sequential, x: Map, tiles: Tiles) -> Map:
    for layer in layers:
        x = tiled(layer, x, tiles)
    return x


@tiled.register
def _(block: ResidualBlock, x: Map, tiles: Tiles) -> Map:
    source, size = tiles.part(x), size_of(x)
    h = tiles.convolved(block.conv1, size, tiles.normalized(block.norm1, x))
    out = tiles.computed(size, lambda box: block.shortcut(source(box)))
    return tiles.convolved(block.conv2, size, tiles.normalized(block.norm2, h), into=out)


@tiled.register
def _(block: AttentionBlock, x: Map, tiles: Tiles) -> Map:
    return block(x.to(tiles.device)).cpu()  # every place attends to all


@tiled.register
def _(layer: Downsample, x: Map, tiles: Tiles) -> Map:
    return tiles.convolved(layer.conv, size_of(x), tiles.part(x), before=0, stride=2)


@tiled.register
def _(layer: Upsample, x: Map, tiles: Tiles) -> Map:
    source, (height, width) = tiles.part(x), size_of(x)

    def twice(box: Box) -> Tensor:
        top, bottom, left, right = box
        part = source((top // 2, (bottom + 1) // 2, left // 2, (right + 1) // 2))
        part = F.interpolate(part, scale_factor=2.0, mode="nearest")
        return part[..., top % 2 :, left % 2 :][..., : bottom - top, : right - left]

    return tiles.convolved(layer.conv, (2 * height, 2 * width), twice)
