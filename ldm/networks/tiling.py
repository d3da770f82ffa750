"""Pictures of any size through the convolutional pair, tile by tile and without a seam.

Tiles that pass a network alone differ at their borders, and everywhere by the statistics of their group
norms. Here every layer runs over all tiles before the next begins: a convolution's tile sees its neighbours'
pixels, and a norm takes its statistics over the whole map. The result is the untiled one but for rounding.
Maps wait on `store`, so that the device holds a few tiles and the coarse middle, which is not tiled.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.networks.autoencoder import Autoencoder, Decoder, Encoder, Level
from ldm.networks.blocks import Downsample, GroupNorm, ResidualBlock, Upsample

Box = tuple[int, int, int, int]
"""Top, bottom, left, right of a part of a map, in its pixels."""


def boxes(height: int, width: int, tile: int) -> Iterator[Box]:
    """Squares of side `tile` that cover a map."""
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            yield top, min(top + tile, height), left, min(left + tile, width)


class Tiles:
    """Layers over maps that wait on `store`, computed on `device`, `tile` pixels a side at a time."""

    def __init__(self, tile: int, store: torch.device, device: torch.device) -> None:
        if tile < 1:
            raise ValueError(f"a tile has at least 1 pixel a side, not {tile}")
        self.tile, self.store, self.device = tile, store, device

    def part(self, x: Float[Tensor, "b c h w"], box: Box) -> Float[Tensor, "b c h2 w2"]:
        """A part of a map, on the device."""
        top, bottom, left, right = box
        return x[..., top:bottom, left:right].to(self.device)

    def whole(self, layer: nn.Module, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """A layer that sees the whole map at once."""
        return layer(x.to(self.device)).to(self.store)

    def convolved(
        self,
        conv: nn.Conv2d,
        size: tuple[int, int],
        source: Callable[[Box], Tensor],
        before: int = 1,
        stride: int = 1,
        into: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """A 3×3 convolution of a map of `size` that `source` gives part by part, added to `into`.

        `before` is the padding at the top and left; what lies outside of the map is zero.
        """
        height, width = size
        rows, columns = height // stride, width // stride
        for top, bottom, left, right in boxes(rows, columns, self.tile):
            a, b, c, d = (stride * n - before for n in (top, bottom - 1, left, right - 1))
            b, d = b + 3, d + 3  # the kernel's last pixel, and one
            inside = max(a, 0), min(b, height), max(c, 0), min(d, width)
            outside = inside[2] - c, d - inside[3], inside[0] - a, b - inside[1]
            y = F.conv2d(F.pad(source(inside), outside), conv.weight, conv.bias, stride)
            if into is None:
                into = torch.zeros(len(y), y.shape[1], rows, columns, dtype=y.dtype, device=self.store)
            into[..., top:bottom, left:right] += y.to(self.store)
        assert into is not None
        return into

    def normalized(self, norm: GroupNorm, x: Float[Tensor, "b c h w"]) -> Callable[[Box], Tensor]:
        """silu(norm(x)) part by part, with the statistics of all of x."""
        groups, (height, width) = norm.num_groups, x.shape[2:]
        sums = torch.zeros(2, len(x), groups, dtype=torch.float64)
        for box in boxes(height, width, self.tile):
            values = self.part(x, box).float().unflatten(1, (groups, -1))
            sums += torch.stack([values.sum((2, 3, 4)), values.square().sum((2, 3, 4))]).double().cpu()
        mean, square = sums / (x.shape[1] // groups * height * width)
        scale = (square - mean.square() + norm.eps).rsqrt()

        def each(statistic: Tensor) -> Tensor:
            """One number a channel."""
            spread = statistic.float().repeat_interleave(x.shape[1] // groups, dim=1)
            return spread[..., None, None].to(self.device)

        weight = each(scale) * norm.weight[:, None, None]
        bias = norm.bias[:, None, None] - each(mean) * weight
        return lambda box: F.silu((self.part(x, box).float() * weight + bias).to(x.dtype))

    def residual(self, block: ResidualBlock, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """A residual block."""
        size = (x.shape[2], x.shape[3])
        h = self.convolved(block.conv1, size, self.normalized(block.norm1, x))
        if isinstance(block.shortcut, nn.Identity):
            out = x.clone()
        else:
            out = torch.empty_like(h)
            for box in boxes(*size, self.tile):
                top, bottom, left, right = box
                out[..., top:bottom, left:right] = block.shortcut(self.part(x, box)).to(self.store)
        return self.convolved(block.conv2, size, self.normalized(block.norm2, h), into=out)

    def resampled(self, layer: nn.Module, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The map in another size."""
        height, width = x.shape[2:]
        if isinstance(layer, Downsample):
            return self.convolved(layer.conv, (height, width), lambda box: self.part(x, box), 0, 2)
        if isinstance(layer, Upsample):
            return self.convolved(layer.conv, (2 * height, 2 * width), lambda box: self.doubled(x, box))
        return x

    def doubled(self, x: Float[Tensor, "b c h w"], box: Box) -> Float[Tensor, "b c h2 w2"]:
        """A part of the map with each pixel twice a side."""
        top, bottom, left, right = box
        part = self.part(x, (top // 2, (bottom + 1) // 2, left // 2, (right + 1) // 2))
        twice = F.interpolate(part, scale_factor=2.0, mode="nearest")
        return twice[..., top % 2 :, left % 2 :][..., : bottom - top, : right - left]

    def level(self, level: Level, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Residual blocks, attention where the level has it, and a change of size."""
        for residual, attention in zip(level.residuals, level.attentions, strict=True):
            x = self.residual(residual, x)  # type: ignore[arg-type]
            if not isinstance(attention, nn.Identity):
                x = self.whole(attention, x)
        return self.resampled(level.resample, x)


@torch.no_grad()
def encode(
    model: Autoencoder,
    x: Float[Tensor, "b c H W"],
    noise: Float[Tensor, "b z h w"],
    tile: int,
    store: str = "cpu",
) -> Float[Tensor, "b z h w"]:
    """`model.encode(x, noise)` of a picture of any size, tile by tile; x may wait on `store`.

    ValueError for an encoder of another kind than `Encoder`, or a size that does not divide.
    """
    encoder = model.encoder
    if not isinstance(encoder, Encoder):
        raise ValueError(f"tiled encoding is for Encoder, not for {type(encoder).__name__}")
    model.check_size(x)
    tiles = Tiles(tile, torch.device(store), model.latent_mean.device)
    h = tiles.convolved(encoder.conv_in, (x.shape[2], x.shape[3]), lambda box: tiles.part(x, box))
    for level in encoder.down:
        h = tiles.level(level, h)  # type: ignore[arg-type]
    h = encoder.middle(h.to(tiles.device))
    h = encoder.conv_out(F.silu(encoder.norm_out(h)))
    return model.normalize(model.bottleneck.posterior(h).sample(noise))


@torch.no_grad()
def decode(
    model: Autoencoder, z_0: Float[Tensor, "b z h w"], tile: int, store: str = "cpu"
) -> Float[Tensor, "b c H W"]:
    """`model.decode(z_0)` of a latent of any size, tile by tile; the picture is left on `store`.

    ValueError for a decoder of another kind than `Decoder`.
    """
    decoder = model.decoder
    if not isinstance(decoder, Decoder):
        raise ValueError(f"tiled decoding is for Decoder, not for {type(decoder).__name__}")
    tiles = Tiles(tile, torch.device(store), model.latent_mean.device)
    h = decoder.middle(decoder.conv_in(model.bottleneck.expand(model.denormalize(z_0)))).to(tiles.store)
    for level in decoder.up:
        h = tiles.level(level, h)  # type: ignore[arg-type]
    return tiles.convolved(decoder.conv_out, (h.shape[2], h.shape[3]), tiles.normalized(decoder.norm_out, h))
