"""The U-Net denoiser, conditioned on time, and by cross-attention, a vector or concatenated maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm.errors import InvalidValue
from ldm.networks.attention import AttentionBlock, SpatialTransformer, check_levels
from ldm.networks.blocks import Checkpointed, GroupNorm, TimeResidualBlock, Upsample, conv3x3, zero_init
from ldm.networks.denoiser import Denoiser, EmbedMLP, build_vector_embedding, sinusoidal_embedding
from ldm.typing import Channels, Conditioning, Depth, Multipliers, NonNegativeInt, Proportion

Map: TypeAlias = Float[Tensor, "b _ _ _"]
"""A feature map; channels and size depend on the layer."""

Embedding: TypeAlias = Float[Tensor, "b e"]
"""The embedding of t and cond.vector."""

Context: TypeAlias = Float[Tensor, "b l d"]
"""Tokens for cross-attention."""

Mask: TypeAlias = Bool[Tensor, "b l"]
"""Which of the tokens may be attended to."""


class Block(Checkpointed):
    """A residual block, followed by attention at the levels that have it."""

    def __init__(self, residual: TimeResidualBlock, attention: nn.Module | None, recompute: bool) -> None:
        super().__init__(recompute)
        self.residual, self.attention = residual, attention

    def compute(self, h: Map, e: Embedding, context: Context | None, mask: Mask | None) -> Map:
        h = self.residual(h, e)
        if self.attention is None:
            return h
        return self.attention(h) if context is None else self.attention(h, context, mask)


def apply_resample(h: Map, layer: nn.Module, e: Embedding) -> Map:
    """Apply a layer that changes the resolution; residual blocks also take the embedding."""
    return layer(h, e) if isinstance(layer, TimeResidualBlock) else layer(h)


class DownLevel(nn.Module):
    """The blocks at one resolution of the down path, then downsampling by 2."""

    def __init__(self, blocks: list[Block], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.downsample = nn.ModuleList(blocks), downsample

    def forward(self, h: Map, e: Embedding, context: Context | None, mask: Mask | None) -> list[Map]:
        """Return the output of every layer; all are skip connections, and the last is the level's output."""
        outputs = []
        for block in self.blocks:
            h = block(h, e, context, mask)
            outputs.append(h)
        return outputs if self.downsample is None else [*outputs, apply_resample(h, self.downsample, e)]


class UpLevel(nn.Module):
    """The blocks at one resolution of the up path, each with a skip connection, then upsampling by 2."""

    def __init__(self, blocks: list[Block], upsample: nn.Module) -> None:
        super().__init__()
        self.blocks, self.upsample = nn.ModuleList(blocks), upsample

    def forward(
        self, h: Map, skips: list[Map], e: Embedding, context: Context | None, mask: Mask | None
    ) -> Map:
        """Return the level's output; its skip connections are popped from `skips`."""
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), e, context, mask)
        return apply_resample(h, self.upsample, e)


def count_heads(channels: int, num_heads: int | None, head_channels: int | None) -> int:
    """Return the number of heads for `channels`, from num_heads or head_channels."""
    if num_heads is not None and head_channels is None:
        return num_heads
    if head_channels is not None and num_heads is None and channels % head_channels == 0:
        return channels // head_channels
    raise InvalidValue(
        f"num_heads={num_heads} and head_channels={head_channels} for {channels} channels: set either "
        "num_heads or a head_channels that divides the channels, and the other to null"
    )


@dataclass(kw_only=True)
class LayerBuilder:
    """A builder of a U-Net's layers with common options; arguments as in `UNet`."""

    time_channels: int
    attention_levels: Sequence[int]
    num_heads: int | None
    head_channels: int | None
    context_channels: int | None
    depths: Sequence[int]
    dropout: float
    scale_shift_norm: bool
    cross_only_levels: Sequence[int]
    resample_in_blocks: bool
    recompute: bool

    def residual(
        self, in_channels: int, channels: int, resample: nn.Module | None = None
    ) -> TimeResidualBlock:
        """Return a residual block that also up- or downsamples if `resample` is set."""
        return TimeResidualBlock(
            in_channels, channels, self.time_channels, self.dropout, self.scale_shift_norm, resample
        )

    def block(self, in_channels: int, channels: int, level: int) -> Block:
        """Return a block, with attention if the level has it."""
        residual = self.residual(in_channels, channels)
        if level not in self.attention_levels:
            return Block(residual, None, self.recompute)
        attention = self.attention(channels, level, level in self.cross_only_levels)
        return Block(residual, attention, self.recompute)

    def middle(self, channels: int) -> nn.ModuleList:
        """Return two blocks; the first has attention, with the transformer depth of the coarsest level."""
        residual, attention = (
            self.residual(channels, channels),
            self.attention(channels, -1, cross_only=False),
        )
        second = self.residual(channels, channels)
        return nn.ModuleList(
            [Block(residual, attention, self.recompute), Block(second, None, self.recompute)]
        )

    def attention(self, channels: int, level: int, cross_only: bool) -> nn.Module:
        """Return a transformer with cross-attention, or only self-attention for a model without context."""
        heads = count_heads(channels, self.num_heads, self.head_channels)
        if self.context_channels is not None:
            return SpatialTransformer(channels, self.context_channels, heads, self.depths[level], cross_only)
        attention = AttentionBlock(channels, heads, eps=1e-5)
        zero_init(attention.attention.out)
        return attention

    def downsample(self, channels: int) -> nn.Module:
        """Return a layer that downsamples by 2."""
        if self.resample_in_blocks:
            return self.residual(channels, channels, nn.AvgPool2d(2))
        return nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def upsample(self, channels: int) -> nn.Module:
        """Return a layer that upsamples by 2."""
        if self.resample_in_blocks:
            return self.residual(channels, channels, nn.Upsample(scale_factor=2.0, mode="nearest"))
        return Upsample(channels)


def build_down_path(
    builder: LayerBuilder, widths: Sequence[int], num_res_blocks: int
) -> tuple[nn.ModuleList, list[int]]:
    """Return the levels from fine to coarse, and the channels of their skip connections."""
    levels, skips = nn.ModuleList(), []
    for i, (finer_width, width) in enumerate(zip([widths[0], *widths[:-1]], widths, strict=True)):
        blocks = [builder.block(width if j else finer_width, width, i) for j in range(num_res_blocks)]
        coarsest = i == len(widths) - 1
        levels.append(DownLevel(blocks, None if coarsest else builder.downsample(width)))
        skips += [width] * (num_res_blocks + (not coarsest))
    return levels, skips


def build_up_path(builder: LayerBuilder, widths: Sequence[int], skips: list[int]) -> nn.ModuleList:
    """Return the levels from coarse to fine, each with one more block than on the down path."""
    levels, channels = nn.ModuleList(), widths[-1]
    blocks_per_level = len(skips) // len(widths)
    for i, width in reversed(list(enumerate(widths))):
        blocks = []
        for _ in range(blocks_per_level):
            blocks.append(builder.block(channels + skips.pop(), width, i))
            channels = width
        levels.append(UpLevel(blocks, builder.upsample(width) if i else nn.Identity()))
    return levels


class UNet(Denoiser):
    """f_θ(z_t, t, c): the U-Net of latent diffusion (Rombach et al. 2022, section 3.3).

    The architecture of Dhariwal & Nichol (2021), with transformers for attention.

    Args:
        in_channels: channels of z_t and cond.concat together.
        channel_mult: width of each level as a multiple of `model_channels`; all but the last downsample by 2.
        attention_levels: indices of the levels with attention, 0 the finest; the middle always has it.
        num_heads, head_channels: number of heads, or channels per head; exactly one of them is set.
        context_channels: channels of cond.context; None for no cross-attention, as in unconditional models.
        vector_channels: channels of cond.vector; None for no vector.
        transformer_depth: number of transformer blocks in each attention layer, or one number per level.
        dropout: probability inside residual blocks.
        scale_shift_norm: see `TimeResidualBlock`.
        num_labels: if set, cond.vector is one integer label per sample, in 0..num_labels-1.
        cross_only_levels: levels with cross-attention but no self-attention, as in the ×4 upscaler.
        resample_in_blocks: resample in residual blocks instead of convolutions (Dhariwal & Nichol 2021, 3).
        activation_checkpointing: see `Checkpointed`; uses less memory, but training takes a third longer.
    """

    title = "the U-Net"

    def __init__(
        self,
        in_channels: Channels,
        out_channels: Channels,
        model_channels: Channels,
        channel_mult: Multipliers,
        num_res_blocks: Depth,
        attention_levels: Sequence[NonNegativeInt],
        num_heads: Channels | None,
        head_channels: Channels | None,
        context_channels: Channels | None,
        vector_channels: Channels | None = None,
        transformer_depth: Depth | Multipliers = 1,
        dropout: Proportion = 0.0,
        scale_shift_norm: bool = False,
        num_labels: Channels | None = None,
        cross_only_levels: Sequence[NonNegativeInt] = (),
        resample_in_blocks: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        if model_channels % 2:
            raise InvalidValue(f"model_channels={model_channels} must be even, for sin and cos of the time")
        widths, time_channels = [model_channels * m for m in channel_mult], 4 * model_channels
        super().__init__(in_channels, context_channels, vector_channels, num_labels, 2 ** (len(widths) - 1))
        check_levels([*attention_levels, *cross_only_levels], len(widths))
        builder = LayerBuilder(
            depths=depth_per_level(transformer_depth, len(widths)), time_channels=time_channels,
            attention_levels=attention_levels, context_channels=context_channels, head_channels=head_channels,
            cross_only_levels=cross_only_levels, resample_in_blocks=resample_in_blocks, num_heads=num_heads,
            dropout=dropout, scale_shift_norm=scale_shift_norm, recompute=activation_checkpointing,
        )  # fmt: skip
        self.model_channels = model_channels
        self.time_embedding = EmbedMLP(model_channels, time_channels)
        self.vector_embedding = build_vector_embedding(vector_channels, num_labels, time_channels)
        self.conv_in = conv3x3(in_channels, widths[0])
        self.down, skips = build_down_path(builder, widths, num_res_blocks)
        self.middle = builder.middle(widths[-1])
        self.up = build_up_path(builder, widths, [widths[0], *skips])
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = zero_init(conv3x3(widths[0], out_channels))

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b out h w"]:
        """Return the prediction y; t is `schedule.network_time(t)`."""
        h = self.conv_in(self.concat_inputs(z_t, cond))
        e = self.embed(t, cond)  # b e
        tokens, skips = (cond.context, cond.context_mask), [h]
        for level in self.down:
            skips += level(skips[-1], e, *tokens)
        h = skips[-1]  # b c h/2^n w/2^n
        for block in self.middle:
            h = block(h, e, *tokens)
        for level in self.up:
            h = level(h, skips, e, *tokens)
        return self.conv_out(F.silu(self.norm_out(h)))

    def embed(self, t: Float[Tensor, " b"], cond: Conditioning) -> Embedding:
        """Return silu(time + vector), which every residual block projects by its own linear layer."""
        e = self.time_embedding(sinusoidal_embedding(t, self.model_channels))
        if self.vector_embedding is not None:
            e = e + self.vector_embedding(cond.vector)
        return F.silu(e)


def depth_per_level(depth: int | Sequence[int], num_levels: int) -> Sequence[int]:
    """Return the transformer depth of each level."""
    depths = [depth] * num_levels if isinstance(depth, int) else depth
    if len(depths) != num_levels:
        raise InvalidValue(
            f"transformer_depth has {len(depths)} numbers for {num_levels} levels: give one, or one per level"
        )
    return depths
