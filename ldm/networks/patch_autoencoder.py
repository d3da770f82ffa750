"""The demo's fast autoencoder: space to depth first, so that nearly all work is at latent resolution."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.networks.attention import AttentionBlock
from ldm.networks.autoencoder import DecoderBase, EncoderBase
from ldm.networks.blocks import GroupNorm, ResidualBlock, conv3x3
from ldm.networks.tiling import Map, TileReader, Tiles, forward_tiled, spatial_size
from ldm.typing import Channels, Depth, Pixels


def build_trunk(channels: int, num_res_blocks: int, mid_attention: bool) -> nn.Sequential:
    """Return residual blocks at one resolution, with optional attention in the middle."""
    blocks: list[nn.Module] = [ResidualBlock(channels, channels) for _ in range(num_res_blocks)]
    if mid_attention:
        blocks.insert(num_res_blocks // 2, AttentionBlock(channels))
    return nn.Sequential(*blocks)


class PatchEncoder(EncoderBase):
    """Space to depth by `patch` (Shi et al. 2016), then residual blocks."""

    def __init__(
        self,
        in_channels: Channels = 3,
        patch: Pixels = 8,
        channels: Channels = 128,
        num_res_blocks: Depth = 2,
        mid_attention: bool = False,
        out_channels: Channels = 32,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.downsampling = in_channels, out_channels, patch
        self.conv_in = conv3x3(in_channels * patch**2, channels)
        self.trunk = build_trunk(channels, num_res_blocks, mid_attention)
        self.norm_out = GroupNorm(channels, eps=1e-6)
        self.conv_out = conv3x3(channels, out_channels)

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b m h w"]:
        h = self.trunk(self.conv_in(F.pixel_unshuffle(x, self.downsampling)))
        return self.conv_out(F.silu(self.norm_out(h)))


@forward_tiled.register
def _(encoder: PatchEncoder, x: Map, tiles: Tiles) -> Map:
    patch, (height, width) = encoder.downsampling, spatial_size(x)
    read_pixels, size = tiles.reader(x, patch), (height // patch, width // patch)
    h = tiles.convolve(encoder.conv_in, size, lambda box: F.pixel_unshuffle(read_pixels(box), patch))
    h = forward_tiled(encoder.trunk, h, tiles)
    return tiles.convolve(encoder.conv_out, size, tiles.norm_silu(encoder.norm_out, h))


class PatchDecoder(DecoderBase):
    """Residual blocks, then depth to space by `patch` (Shi et al. 2016), then two convolutions on pixels.

    Those two are cheap and sharpen edges inside a patch: without them every pixel of a patch is a linear map
    of the same features.

    Args:
        pixel_channels: channels per pixel after depth to space; twice as many between the convolutions.
    """

    def __init__(
        self,
        out_channels: Channels = 3,
        patch: Pixels = 8,
        channels: Channels = 128,
        num_res_blocks: Depth = 2,
        mid_attention: bool = False,
        in_channels: Channels = 16,
        pixel_channels: Channels = 8,
    ) -> None:
        super().__init__()
        self.in_channels, self.patch = in_channels, patch
        self.conv_in = conv3x3(in_channels, channels)
        self.trunk = build_trunk(channels, num_res_blocks, mid_attention)
        self.norm_out = GroupNorm(channels, eps=1e-6)
        self.to_pixels = conv3x3(channels, pixel_channels * patch**2)
        self.conv_pixels = conv3x3(pixel_channels, 2 * pixel_channels)
        self.conv_out = conv3x3(2 * pixel_channels, out_channels)

    def forward(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c H W"]:
        h = self.to_pixels(F.silu(self.norm_out(self.trunk(self.conv_in(z)))))  # b pp h w
        h = self.conv_pixels(F.silu(F.pixel_shuffle(h, self.patch)))  # b 2p H W
        return self.conv_out(F.silu(h))


@forward_tiled.register
def _(decoder: PatchDecoder, z: Map, tiles: Tiles) -> Map:
    h = tiles.convolve(decoder.conv_in, spatial_size(z), tiles.reader(z))
    h = forward_tiled(decoder.trunk, h, tiles)
    h = tiles.convolve(decoder.to_pixels, spatial_size(h), tiles.norm_silu(decoder.norm_out, h))
    h = F.pixel_shuffle(h, decoder.patch)
    for conv in (decoder.conv_pixels, decoder.conv_out):
        h = tiles.convolve(conv, spatial_size(h), silu_reader(tiles.reader(h)))
    return h


def silu_reader(read: TileReader) -> TileReader:
    """Return a reader of silu of a map."""
    return lambda box: F.silu(read(box))
