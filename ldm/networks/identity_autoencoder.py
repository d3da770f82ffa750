"""The identity as a first stage: diffusion on pixels, the baseline LDM-1 of Rombach et al. (2022)."""

from jaxtyping import Float
from torch import Tensor, nn

from ldm.networks.autoencoder import DecoderBase, EncoderBase
from ldm.networks.tiling import Map, Tiles, forward_tiled
from ldm.typing import Channels


class IdentityEncoder(EncoderBase):
    """z = x (Rombach et al. 2022, section 4.1, f = 1)."""

    def __init__(self, in_channels: Channels = 3) -> None:
        super().__init__()
        self.in_channels = self.out_channels = in_channels
        self.downsampling = 1

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        return x


class IdentityDecoder(DecoderBase):
    """x = z; without weights, and so without a `last_layer`."""

    def __init__(self, out_channels: Channels = 3) -> None:
        super().__init__()
        self.in_channels = out_channels

    def forward(self, z: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        return z


@forward_tiled.register(IdentityEncoder)
@forward_tiled.register(IdentityDecoder)
def _(network: nn.Module, x: Map, tiles: Tiles) -> Map:
    return x
