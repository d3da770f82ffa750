"""DC-AE: an autoencoder for high compression, with non-parametric shortcuts at every resampling."""

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.errors import InvalidValue
from ldm.networks.attention import check_levels
from ldm.networks.autoencoder import DecoderBase, EncoderBase
from ldm.networks.blocks import GroupNorm, conv3x3
from ldm.networks.levels import ResolutionLevel
from ldm.networks.tiling import Box, Map, Tiles, forward_tiled, spatial_size
from ldm.typing import Channels, Multipliers, NonNegativeInt, Pixels, Range


def average_channels(x: Float[Tensor, "b c h w"], channels: int) -> Float[Tensor, "b d h w"]:
    """Average groups of neighbouring channels to get `channels`."""
    return x.unflatten(1, (channels, -1)).mean(2)


def repeat_channels(x: Float[Tensor, "b c h w"], channels: int) -> Float[Tensor, "b d h w"]:
    """Repeat each channel to get `channels`."""
    return x.repeat_interleave(channels // x.shape[1], dim=1)


def check_lengths(widths: Sequence[int], num_res_blocks: Sequence[int]) -> None:
    """Raise ValueError unless each level has its number of residual blocks."""
    if len(num_res_blocks) != len(widths):
        raise InvalidValue(
            f"num_res_blocks={list(num_res_blocks)} has {len(num_res_blocks)} numbers for the {len(widths)} "
            "levels of channel_mult: give one per level"
        )


def check_ratio(many: int, few: int) -> None:
    """Raise ValueError unless `few` divides `many`."""
    if many % few:
        raise InvalidValue(
            f"a shortcut between {many} and {few} channels: {many} must be a multiple of {few}"
        )


class SpaceToChannel(nn.Module):
    """fold(conv(x)) + mean(fold(x)): downsampling by 2 (Chen et al. 2025, 3.2; arXiv 2410.10733)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        check_ratio(4 * in_channels, out_channels)
        check_ratio(out_channels, 4)
        self.out_channels = out_channels
        self.conv = conv3x3(in_channels, out_channels // 4)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        return F.pixel_unshuffle(self.conv(x), 2) + average_channels(
            F.pixel_unshuffle(x, 2), self.out_channels
        )


@forward_tiled.register
def _(layer: SpaceToChannel, x: Map, tiles: Tiles) -> Map:
    read, (height, width) = tiles.reader(x, 2), spatial_size(x)
    read_convolved = tiles.reader(tiles.convolve(layer.conv, (height, width), tiles.reader(x)), 2)

    def read_output(box: Box) -> Tensor:
        shortcut = average_channels(F.pixel_unshuffle(read(box), 2), layer.out_channels)
        return F.pixel_unshuffle(read_convolved(box), 2) + shortcut

    return tiles.assemble((height // 2, width // 2), read_output)


class ChannelToSpace(nn.Module):
    """unfold(conv(x)) + unfold(repeat(x)): upsampling by 2 (Chen et al. 2025, 3.2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        check_ratio(4 * out_channels, in_channels)
        self.out_channels = out_channels
        self.conv = conv3x3(in_channels, 4 * out_channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        return F.pixel_shuffle(self.conv(x) + repeat_channels(x, 4 * self.out_channels), 2)


@forward_tiled.register
def _(layer: ChannelToSpace, x: Map, tiles: Tiles) -> Map:
    read, size = tiles.reader(x), spatial_size(x)
    shortcut = tiles.assemble(size, lambda box: repeat_channels(read(box), 4 * layer.out_channels))
    return F.pixel_shuffle(tiles.convolve(layer.conv, size, read, into=shortcut), 2)


class DeepEncoder(EncoderBase):
    """Residual blocks, residual space-to-channel and a residual output projection (Chen et al. 2025, DC-AE).

    Args:
        channel_mult: width of each level in units of `channels`; every level but the last downsamples by 2.
        num_res_blocks: one number per level.
        attention_levels: indices of the levels with attention, 0 the finest.
        patch: side length of the pixel patches that are folded into channels before the first level.
    """

    def __init__(
        self,
        in_channels: Channels,
        channels: Channels,
        channel_mult: Multipliers,
        num_res_blocks: Sequence[Annotated[int, Range(0, 256)]],
        attention_levels: Sequence[NonNegativeInt],
        out_channels: Channels,
        patch: Pixels = 1,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in channel_mult]
        check_levels(attention_levels, len(widths))
        check_lengths(widths, num_res_blocks)
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
        return self.conv_out(F.silu(self.norm_out(h))) + average_channels(h, self.out_channels)


@forward_tiled.register
def _(encoder: DeepEncoder, x: Map, tiles: Tiles) -> Map:
    read_pixels, (height, width) = tiles.reader(x, encoder.patch), spatial_size(x)
    size = (height // encoder.patch, width // encoder.patch)
    h = tiles.convolve(encoder.conv_in, size, lambda box: F.pixel_unshuffle(read_pixels(box), encoder.patch))
    for level in encoder.down:
        h = forward_tiled(level, h, tiles)
    read, size = tiles.reader(h), spatial_size(h)
    shortcut = tiles.assemble(size, lambda box: average_channels(read(box), encoder.out_channels))
    return tiles.convolve(encoder.conv_out, size, tiles.norm_silu(encoder.norm_out, h), into=shortcut)


class DeepDecoder(DecoderBase):
    """The encoder mirrored, with the same arguments; `up` runs from coarse to fine."""

    def __init__(
        self,
        out_channels: Channels,
        channels: Channels,
        channel_mult: Multipliers,
        num_res_blocks: Sequence[Annotated[int, Range(0, 256)]],
        attention_levels: Sequence[NonNegativeInt],
        in_channels: Channels,
        patch: Pixels = 1,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in channel_mult]
        check_levels(attention_levels, len(widths))
        check_lengths(widths, num_res_blocks)
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
        h = self.conv_in(z) + repeat_channels(z, self.width)
        for level in self.up:
            h = level(h)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)


@forward_tiled.register
def _(decoder: DeepDecoder, z: Map, tiles: Tiles) -> Map:
    read, size = tiles.reader(z), spatial_size(z)
    shortcut = tiles.assemble(size, lambda box: repeat_channels(read(box), decoder.width))
    h = tiles.convolve(decoder.conv_in, size, read, into=shortcut)
    for level in decoder.up:
        h = forward_tiled(level, h, tiles)
    folded = tiles.convolve(decoder.conv_out, spatial_size(h), tiles.norm_silu(decoder.norm_out, h))
    return F.pixel_shuffle(folded, decoder.patch)
