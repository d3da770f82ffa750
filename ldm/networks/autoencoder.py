"""The first stage: an autoencoder from pixels to latents and back."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.errors import InvalidValue
from ldm.networks.attention import check_levels
from ldm.networks.blocks import Downsample, GroupNorm, Upsample, autocast_off_if_fp16, conv3x3
from ldm.networks.bottleneck import Bottleneck, DiagonalGaussian
from ldm.networks.levels import MidBlock, ResolutionLevel
from ldm.networks.tiling import Map, Tiles, forward_tiled, run_tiled, spatial_size
from ldm.typing import Channels, Depth, Multipliers, NonNegativeInt

Statistic: TypeAlias = float | Sequence[float] | Float[Tensor, " z"]
"""One number for all channels, or one per channel."""


class EncoderBase(nn.Module):
    """An encoder: pixels to the input of a bottleneck."""

    in_channels: int
    out_channels: int
    downsampling: int  # factor per side: pixels per latent position


class DecoderBase(nn.Module):
    """A decoder: a latent to pixels; `conv_out` is its last layer."""

    in_channels: int
    conv_out: nn.Conv2d

    @property
    def last_layer(self) -> Tensor:
        """Return the weight whose gradients set the adaptive adversarial weight."""
        return self.conv_out.weight


class Encoder(EncoderBase):
    """The convolutional encoder of latent diffusion (Rombach et al. 2022, appendix G; Esser et al. 2021).

    Args:
        channel_mult: width of each level in units of `channels`; every level but the last downsamples by 2.
        attention_levels: indices of the levels with attention, 0 the finest.
        out_channels: twice the latent's channels for a KL bottleneck.
    """

    def __init__(
        self,
        in_channels: Channels = 3,
        channels: Channels = 128,
        channel_mult: Multipliers = (1, 2, 4, 4),
        num_res_blocks: Depth = 2,
        attention_levels: Sequence[NonNegativeInt] = (),
        mid_attention: bool = True,
        out_channels: Channels = 8,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in channel_mult]
        self.in_channels, self.out_channels = in_channels, out_channels
        self.downsampling = 2 ** (len(widths) - 1)
        check_levels(attention_levels, len(widths))
        self.conv_in = conv3x3(in_channels, channels)
        self.down = nn.ModuleList()
        for i, (a, b) in enumerate(zip([channels, *widths[:-1]], widths, strict=True)):
            resample = Downsample(b) if i < len(widths) - 1 else nn.Identity()
            self.down.append(ResolutionLevel(a, b, num_res_blocks, i in attention_levels, resample))
        self.middle = MidBlock(widths[-1], mid_attention)
        self.norm_out = GroupNorm(widths[-1], eps=1e-6)
        self.conv_out = conv3x3(widths[-1], out_channels)

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b m h w"]:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.middle(h))))


@forward_tiled.register
def _(encoder: Encoder, x: Map, tiles: Tiles) -> Map:
    h = tiles.convolve(encoder.conv_in, spatial_size(x), tiles.reader(x))
    for layer in (*encoder.down, encoder.middle):
        h = forward_tiled(layer, h, tiles)
    return tiles.convolve(encoder.conv_out, spatial_size(h), tiles.norm_silu(encoder.norm_out, h))


class Decoder(DecoderBase):
    """The encoder mirrored, with one more residual block per level; `up` runs from coarse to fine.

    Arguments as in `Encoder`.
    """

    def __init__(
        self,
        out_channels: Channels = 3,
        channels: Channels = 128,
        channel_mult: Multipliers = (1, 2, 4, 4),
        num_res_blocks: Depth = 2,
        attention_levels: Sequence[NonNegativeInt] = (),
        mid_attention: bool = True,
        in_channels: Channels = 4,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in channel_mult]
        self.in_channels = in_channels
        check_levels(attention_levels, len(widths))
        self.conv_in = conv3x3(in_channels, widths[-1])
        self.middle = MidBlock(widths[-1], mid_attention)
        self.up = nn.ModuleList()
        for i in reversed(range(len(widths))):
            coarser_width = widths[min(i + 1, len(widths) - 1)]
            resample = Upsample(widths[i]) if i > 0 else nn.Identity()
            self.up.append(
                ResolutionLevel(coarser_width, widths[i], num_res_blocks + 1, i in attention_levels, resample)
            )
        self.norm_out = GroupNorm(widths[0], eps=1e-6)
        self.conv_out = conv3x3(widths[0], out_channels)

    def forward(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c H W"]:
        h = self.middle(self.conv_in(z))
        for level in self.up:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


@forward_tiled.register
def _(decoder: Decoder, z: Map, tiles: Tiles) -> Map:
    h = tiles.convolve(decoder.conv_in, spatial_size(z), tiles.reader(z))
    for layer in (decoder.middle, *decoder.up):
        h = forward_tiled(layer, h, tiles)
    return tiles.convolve(decoder.conv_out, spatial_size(h), tiles.norm_silu(decoder.norm_out, h))


class Autoencoder(nn.Module):
    """x_hat = D(z), z ~ q(z|E(x)) (Rombach et al. 2022, section 3.1).

    Raw latents are the bottleneck's. Diffusion uses z_0, normalised to mean 0 and std 1 per channel.
    Stable Diffusion's scaling factor 0.18215 is latent_std = 1/0.18215.

    Args:
        latent_mean, latent_std: one number, or one per channel; `set_latent_statistics` replaces them.

    Attributes:
        tile: side length of the tiles that feature maps are computed in, in positions of each map; None for
            no tiling. Changes memory and time, not the result; has no gradients: see ldm.networks.tiling.
    """

    tile: int | None = None
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        encoder: EncoderBase,
        decoder: DecoderBase,
        bottleneck: Bottleneck,
        latent_mean: Statistic = 0.0,
        latent_std: Statistic = 1.0,
    ) -> None:
        super().__init__()
        channels, expected = encoder.out_channels, bottleneck.in_channels
        if channels != expected or decoder.in_channels != bottleneck.latent_channels:
            raise InvalidValue(
                f"encoder.out_channels={channels} and decoder.in_channels={decoder.in_channels} do not match "
                f"the bottleneck: use {expected} and {bottleneck.latent_channels}"
            )
        self.encoder, self.decoder, self.bottleneck = encoder, decoder, bottleneck
        self.latent_channels = bottleneck.latent_channels
        self.downsampling = encoder.downsampling
        self.register_buffer("latent_mean", torch.zeros(self.latent_channels))
        self.register_buffer("latent_std", torch.ones(self.latent_channels))
        self.set_latent_statistics(latent_mean, latent_std)

    @property
    def last_layer(self) -> Tensor:
        """Return the decoder's last weight, for the adaptive adversarial weight."""
        return self.decoder.last_layer

    def freeze_encoder(self) -> None:
        """Freeze encoder and bottleneck and train only the decoder, so that latents stay valid."""
        self.encoder.requires_grad_(False)
        self.bottleneck.requires_grad_(False)

    def posterior(self, x: Float[Tensor, "b c H W"]) -> DiagonalGaussian:
        """Return q(z|x) over raw latents, for x in [-1, 1]."""
        self.check_size(x)
        with self._range(x):
            return self.bottleneck.posterior(self._run(self.encoder, x))

    def check_size(self, x: Float[Tensor, "b c H W"]) -> None:
        """Raise ValueError unless height and width are multiples of the downsampling factor."""
        height, width = x.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            raise InvalidValue(f"{height}x{width} pixels: both must be multiples of {self.downsampling}")

    def dimensions(self, posterior: DiagonalGaussian) -> int:
        """Return C · H · W of the images that the posterior was encoded from."""
        return self.encoder.in_channels * self.downsampling**2 * posterior.mean[0, 0].numel()

    def reconstruct(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c H W"]:
        """Decode raw latents to pixels, nominally in [-1, 1]."""
        with self._range(z):
            return self._run(self.decoder, self.bottleneck.expand(z))

    def _range(self, x: Tensor) -> AbstractContextManager:
        """Return a context in fp32 instead of fp16, except in training.

        The activations of published decoders exceed 65,504, the largest number of fp16.
        """
        return nullcontext() if self.training else autocast_off_if_fp16(x)

    def _run(self, network: nn.Module, x: Map) -> Map:
        return network(x) if self.tile is None else run_tiled(network, x, self.tile, self.latent_mean.device)

    def forward(
        self, x: Float[Tensor, "b c H W"], noise: Float[Tensor, "b z h w"]
    ) -> tuple[Float[Tensor, "b c H W"], DiagonalGaussian]:
        """Return the reconstruction from a posterior sample, and the posterior."""
        posterior = self.posterior(x)
        return self.reconstruct(posterior.sample(noise)), posterior

    def normalize(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """z_0 = (z - latent_mean) / latent_std."""
        return (z - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    def denormalize(self, z_0: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """z = latent_std z_0 + latent_mean."""
        return z_0 * self.latent_std[:, None, None] + self.latent_mean[:, None, None]

    def encode(
        self, x: Float[Tensor, "b c H W"], noise: Float[Tensor, "b z h w"]
    ) -> Float[Tensor, "b z h w"]:
        """Encode to z_0, the normalised posterior sample."""
        return self.normalize(self.posterior(x).sample(noise))

    def decode(self, z_0: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c H W"]:
        """Decode z_0 to pixels, nominally in [-1, 1]."""
        return self.reconstruct(self.denormalize(z_0))

    @torch.no_grad()
    def set_latent_statistics(self, mean: Statistic, std: Statistic) -> None:
        """Set the mean and std of raw latents; raise ValueError unless every std is positive."""
        mean, std = (expand_statistic(values, self.latent_channels) for values in (mean, std))
        if not std.is_meta and not bool((std > 0).all()):
            raise InvalidValue(f"latent_std must be positive in every channel, got {std.tolist()}")
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)


def expand_statistic(values: Statistic, channels: int) -> Float[Tensor, " z"]:
    """Return one number per channel."""
    statistic = torch.as_tensor(list(values) if isinstance(values, Sequence) else values)
    if statistic.numel() not in (1, channels):
        raise InvalidValue(f"{statistic.numel()} latent statistics: give 1 or {channels}, one per channel")
    return statistic.float().expand(channels)
