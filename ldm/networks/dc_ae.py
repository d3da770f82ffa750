"""A pair for large compression: every change of size has a shortcut without weights (DC-AE)."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.errors import InvalidValue
from ldm.networks.attention import check_levels
from ldm.networks.autoencoder import DecoderBase, EncoderBase, ResolutionLevel
from ldm.networks.blocks import GroupNorm, conv3x3
from ldm.networks.tiling import Box, Map, Tiles, size_of, tiled


def averaged(x: Float[Tensor, "b c h w"], channels: int) -> Float[Tensor, "b d h w"]:
    """Fewer channels: the means of neighbouring ones."""
    return x.unflatten(1, (channels, -1)).mean(2)


def repeated(x: Float[Tensor, "b c h w"], channels: int) -> Float[Tensor, "b d h w"]:
    """More channels: each several times."""
    return x.repeat_interleave(channels // x.shape[1], dim=1)


def check_ratio(many: int, few: int) -> None:
    """ValueError unless the shortcut's channels divide."""
    if many % few:
        raise InvalidValue(f"a shortcut between {many} and {few} channels needs one to divide the other")


class SpaceToChannel(nn.Module):
    """fold(conv(x)) + mean(fold(x)): half the size (Chen et al. 2025, 3.2; arXiv 2410.10733)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        check_ratio(4 * in_channels, out_channels)
        check_ratio(out_channels, 4)
        self.out_channels = out_channels
        self.conv = conv3x3(in_channels, out_channels // 4)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        return F.pixel_unshuffle(self.conv(x), 2) + averaged(F.pixel_unshuffle(x, 2), self.out_channels)


@tiled.register
def _(layer: SpaceToChannel, x: Map, tiles: Tiles) -> Map:
    source, (height, width) = tiles.part(x, 2), size_of(x)
    convolved = tiles.part(tiles.convolved(layer.conv, (height, width), tiles.part(x)), 2)

    def part(box: Box) -> Tensor:
        folded = F.pixel_unshuffle(convolved(box), 2)
        return folded + averaged(F.pixel_unshuffle(source(box), 2), layer.out_channels)

    return tiles.computed((height // 2, width // 2), part)


class ChannelToSpace(nn.Module):
    """unfold(conv(x)) + unfold(repeat(x)): twice the size (Chen et al. 2025, 3.2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        check_ratio(4 * out_channels, in_channels)
        self.out_channels = out_channels
        self.conv = conv3x3(in_channels, 4 * out_channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        return F.pixel_shuffle(self.conv(x) + repeated(x, 4 * self.out_channels), 2)


@tiled.register
def _(layer: ChannelToSpace, x: Map, tiles: Tiles) -> Map:
    source, size = tiles.part(x), size_of(x)
    shortcut = tiles.computed(size, lambda box: repeated(source(box), 4 * layer.out_channels))
    return F.pixel_shuffle(tiles.convolved(layer.conv, size, source, into=shortcut), 2)


class DeepEncoder(EncoderBase):
    """Residual blocks and residual space-to-channel, a residual projection last (Chen et al. 2025, DC-AE).

    Args:
        channel_mult: width of each level in units of `channels`; every level but the last halves the size.
        num_res_blocks: of each level.
        attention_levels: indices of the levels with attention, 0 the finest.
        patch: pixels a side that are folded into channels at once, before the first level.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: Sequence[int],
        attention_levels: Sequence[int],
        out_channels: int,
        patch: int = 1,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in channel_mult]
        check_levels(attention_levels, len(widths))
        check_ratio(widths[-1], out_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.patch, self.downsampling = patch, patch * 2 ** (len(widths) - 1)
        self.conv_in = conv3x3(in_channels * patch**2, widths[0])
        self.down = nn.ModuleList()
        for i, (width, n) in enumerate(zip(widths, num_res_blocks, strict=True)):
            last = i == len(widths) - 1
            resample = nn.Identity() if last else SpaceToChannel(width, widths[i + 1])
            self.down.append(ResolutionLevel(width, width, n, i in attention_levels, resample))
        self.norm_out = GroupNorm(widths[-1], eps=1e-6)
        self.conv_out = conv3x3(widths[-1], out_channels)

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b m h w"]:
        h = self.conv_in(F.pixel_unshuffle(x, self.patch))
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h))) + averaged(h, self.out_channels)


@tiled.register
def _(encoder: DeepEncoder, x: Map, tiles: Tiles) -> Map:
    pixels, (height, width) = tiles.part(x, encoder.patch), size_of(x)
    size = (height // encoder.patch, width // encoder.patch)
    h = tiles.convolved(encoder.conv_in, size, lambda box: F.pixel_unshuffle(pixels(box), encoder.patch))
    for level in encoder.down:
        h = tiled(level, h, tiles)
    source = tiles.part(h)
    shortcut = tiles.computed(size_of(h), lambda box: averaged(source(box), encoder.out_channels))
    return tiles.convolved(encoder.conv_out, size_of(h), tiles.normalized(encoder.norm_out, h), into=shortcut)


class DeepDecoder(DecoderBase):
    """The encoder's mirror; its arguments, `up` runs from coarse to fine."""

    def __init__(
        self,
        out_channels: int,
        channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: Sequence[int],
        attention_levels: Sequence[int],
        in_channels: int,
        patch: int = 1,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in channel_mult]
        check_levels(attention_levels, len(widths))
        check_ratio(widths[-1], in_channels)
        self.in_channels, self.width, self.patch = in_channels, widths[-1], patch
        self.conv_in = conv3x3(in_channels, widths[-1])
        self.up = nn.ModuleList()
        for i, (width, n) in reversed(list(enumerate(zip(widths, num_res_blocks, strict=True)))):
            resample = ChannelToSpace(width, widths[i - 1]) if i else nn.Identity()
            self.up.append(ResolutionLevel(width, width, n, i in attention_levels, resample))
        self.norm_out = GroupNorm(widths[0], eps=1e-6)
        self.conv_out = conv3x3(widths[0], out_channels * patch**2)

    def forward(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c H W"]:
        h = self.conv_in(z) + repeated(z, self.width)
        for level in self.up:
            h = level(h)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)


@tiled.register
def _(decoder: DeepDecoder, z: Map, tiles: Tiles) -> Map:
    source = tiles.part(z)
    shortcut = tiles.computed(size_of(z), lambda box: repeated(source(box), decoder.width))
    h = tiles.convolved(decoder.conv_in, size_of(z), source, into=shortcut)
    for level in decoder.up:
        h = tiled(level, h, tiles)
    folded = tiles.convolved(decoder.conv_out, size_of(h), tiles.normalized(decoder.norm_out, h))
    return F.pixel_shuffle(folded, decoder.patch)
