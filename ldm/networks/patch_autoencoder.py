"""The demo's fast pair: pixels folded into channels at once, nearly all work at the latent's size."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.networks.attention import AttentionBlock
from ldm.networks.autoencoder import DecoderBase, EncoderBase
from ldm.networks.blocks import GroupNorm, ResidualBlock, conv3x3
from ldm.networks.tiling import Map, Source, Tiles, size_of, tiled


def trunk(channels: int, num_res_blocks: int, mid_attention: bool) -> nn.Sequential:
    """Residual blocks at one size, an attention block amid them if asked for."""
    blocks: list[nn.Module] = [ResidualBlock(channels, channels) for _ in range(num_res_blocks)]
    if mid_attention:
        blocks.insert(num_res_blocks // 2, AttentionBlock(channels))
    return nn.Sequential(*blocks)


class PatchEncoder(EncoderBase):
    """Space to depth by `patch` (Shi et al. 2016), then residual blocks."""

    def __init__(
        self,
        in_channels: int = 3,
        patch: int = 8,
        channels: int = 128,
        num_res_blocks: int = 2,
        mid_attention: bool = False,
        out_channels: int = 32,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.downsampling = in_channels, out_channels, patch
        self.conv_in = conv3x3(in_channels * patch**2, channels)
        self.trunk = trunk(channels, num_res_blocks, mid_attention)
        self.norm_out = GroupNorm(channels, eps=1e-6)
        self.conv_out = conv3x3(channels, out_channels)

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b m h w"]:
        h = self.trunk(self.conv_in(F.pixel_unshuffle(x, self.downsampling)))
        return self.conv_out(F.silu(self.norm_out(h)))


@tiled.register
def _(encoder: PatchEncoder, x: Map, tiles: Tiles) -> Map:
    patch, (height, width) = encoder.downsampling, size_of(x)
    pixels, size = tiles.part(x, patch), (height // patch, width // patch)
    h = tiles.convolved(encoder.conv_in, size, lambda box: F.pixel_unshuffle(pixels(box), patch))
    h = tiled(encoder.trunk, h, tiles)
    return tiles.convolved(encoder.conv_out, size, tiles.normalized(encoder.norm_out, h))


class PatchDecoder(DecoderBase):
    """Residual blocks, then depth to space by `patch` (Shi et al. 2016), then two convolutions of pixels.

    Those two cost little and let an edge lie where it must: without them every pixel of a patch is one linear
    map of the same features.

    Args:
        pixel_channels: features a pixel gets from depth to space; twice as many between the convolutions.
    """

    def __init__(
        self,
        out_channels: int = 3,
        patch: int = 8,
        channels: int = 128,
        num_res_blocks: int = 2,
        mid_attention: bool = False,
        in_channels: int = 16,
        pixel_channels: int = 8,
    ) -> None:
        super().__init__()
        self.in_channels, self.patch = in_channels, patch
        self.conv_in = conv3x3(in_channels, channels)
        self.trunk = trunk(channels, num_res_blocks, mid_attention)
        self.norm_out = GroupNorm(channels, eps=1e-6)
        self.to_pixels = conv3x3(channels, pixel_channels * patch**2)
        self.conv_pixels = conv3x3(pixel_channels, 2 * pixel_channels)
        self.conv_out = conv3x3(2 * pixel_channels, out_channels)

    def forward(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c H W"]:
        h = self.to_pixels(F.silu(self.norm_out(self.trunk(self.conv_in(z)))))  # b pp h w
        h = self.conv_pixels(F.silu(F.pixel_shuffle(h, self.patch)))  # b 2p H W
        return self.conv_out(F.silu(h))


@tiled.register
def _(decoder: PatchDecoder, z: Map, tiles: Tiles) -> Map:
    h = tiles.convolved(decoder.conv_in, size_of(z), tiles.part(z))
    h = tiled(decoder.trunk, h, tiles)
    h = tiles.convolved(decoder.to_pixels, size_of(h), tiles.normalized(decoder.norm_out, h))
    h = F.pixel_shuffle(h, decoder.patch)
    for conv in (decoder.conv_pixels, decoder.conv_out):
        h = tiles.convolved(conv, size_of(h), activated(tiles.part(h)))
    return h


def activated(source: Source) -> Source:
    """silu of a map, part by part."""
    return lambda box: F.silu(source(box))
