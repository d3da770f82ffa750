"""The resolution levels of convolutional autoencoders."""

from jaxtyping import Float
from torch import Tensor, nn

from ldm.networks.attention import AttentionBlock
from ldm.networks.blocks import ResidualBlock
from ldm.networks.tiling import Map, Tiles, forward_tiled


class ResolutionLevel(nn.Module):
    """Residual blocks at one resolution, each followed by optional attention, then up- or downsampling."""

    def __init__(
        self, in_channels: int, channels: int, num_res_blocks: int, attention: bool, resample: nn.Module
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * num_res_blocks
        self.residuals = nn.ModuleList(
            ResidualBlock(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(channels) if attention else nn.Identity() for _ in range(num_res_blocks)
        )
        self.resample = resample

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        for residual, attention in zip(self.residuals, self.attentions, strict=True):
            x = attention(residual(x))
        return self.resample(x)


@forward_tiled.register
def _(level: ResolutionLevel, x: Map, tiles: Tiles) -> Map:
    for residual, attention in zip(level.residuals, level.attentions, strict=True):
        x = forward_tiled(attention, forward_tiled(residual, x, tiles), tiles)
    return forward_tiled(level.resample, x, tiles)


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the latent's resolution."""

    def __init__(self, channels: int, attention: bool) -> None:
        super().__init__()
        self.residual1 = ResidualBlock(channels, channels)
        self.attention = AttentionBlock(channels) if attention else nn.Identity()
        self.residual2 = ResidualBlock(channels, channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.residual2(self.attention(self.residual1(x)))


@forward_tiled.register
def _(middle: MidBlock, x: Map, tiles: Tiles) -> Map:
    for layer in (middle.residual1, middle.attention, middle.residual2):
        x = forward_tiled(layer, x, tiles)
    return x
