"""The denoiser: a U-Net told of time and conditioned by cross-attention, a vector or concatenated maps."""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.networks.attention import AttentionBlock, SpatialTransformer, check_levels
from ldm.networks.blocks import GroupNorm, TimeResidualBlock, Upsample, conv3x3, zeroed
from ldm.typing import Conditioning

Map: TypeAlias = Float[Tensor, "b _ _ _"]
"""A feature map, its channels and size the layer's own."""

Embedding: TypeAlias = Float[Tensor, "b e"]
"""Time and vector, embedded."""

Context: TypeAlias = Float[Tensor, "b l d"]
"""Tokens to attend to."""


def sinusoid(t: Float[Tensor, " b"], channels: int) -> Float[Tensor, "b e"]:
    """[cos ω_i t, sin ω_i t], ω_i = 10000^(-2i/channels), in fp32 (Vaswani et al. 2017, section 3.5)."""
    half = channels // 2
    omega = torch.exp(-math.log(10000) / half * torch.arange(half, device=t.device))
    angles = t.float()[:, None] * omega
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Embed(nn.Module):
    """W_out silu(W_in v): what time's sinusoids and the vector go through."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(in_channels, channels)
        self.linear_out = nn.Linear(channels, channels)

    def forward(self, v: Float[Tensor, "b v"]) -> Embedding:
        return self.linear_out(F.silu(self.linear_in(v)))


class Block(nn.Module):
    """A residual block, then attention where the level has it."""

    def __init__(self, residual: TimeResidualBlock, attention: nn.Module | None) -> None:
        super().__init__()
        self.residual, self.attention = residual, attention

    def forward(self, h: Map, e: Embedding, context: Context | None) -> Map:
        h = self.residual(h, e)
        if self.attention is None:
            return h
        return self.attention(h) if context is None else self.attention(h, context)


class DownLevel(nn.Module):
    """The blocks of one size on the way down, then half the size."""

    def __init__(self, blocks: list[Block], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.downsample = nn.ModuleList(blocks), downsample

    def forward(self, h: Map, e: Embedding, context: Context | None) -> list[Map]:
        """Every layer's output: skip connections all, and the last one goes on."""
        states = []
        for block in self.blocks:
            h = block(h, e, context)
            states.append(h)
        return states if self.downsample is None else [*states, self.downsample(h)]


class UpLevel(nn.Module):
    """The blocks of one size on the way up, each with a skip connection, then twice the size."""

    def __init__(self, blocks: list[Block], upsample: nn.Module) -> None:
        super().__init__()
        self.blocks, self.upsample = nn.ModuleList(blocks), upsample

    def forward(self, h: Map, skips: list[Map], e: Embedding, context: Context | None) -> Map:
        """Takes its skip connections off the end of `skips`."""
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), e, context)
        return self.upsample(h)


def count_heads(channels: int, num_heads: int | None, head_channels: int | None) -> int:
    """Heads of an attention over `channels`, from the one number that is given."""
    if num_heads is not None and head_channels is None:
        return num_heads
    if head_channels is not None and num_heads is None and channels % head_channels == 0:
        return channels // head_channels
    raise ValueError(
        f"{channels} channels need either num_heads or head_channels that divides them, "
        f"not num_heads {num_heads} and head_channels {head_channels}"
    )


def build_attention(channels: int, num_heads: int, context_channels: int | None, depth: int) -> nn.Module:
    """A transformer with cross-attention, or the unconditional models' attention without a context."""
    if context_channels is not None:
        return SpatialTransformer(channels, context_channels, num_heads, depth)
    attention = AttentionBlock(channels, num_heads, eps=1e-5)
    zeroed(attention.attention.out)
    return attention


BuildBlock: TypeAlias = Callable[[int, int, bool], Block]
"""(channels in, channels out, whether it attends)."""


def down_path(
    block: BuildBlock, widths: Sequence[int], num_res_blocks: int, attention_levels: Sequence[int]
) -> tuple[nn.ModuleList, list[int]]:
    """The levels from fine to coarse, and the channels of the skip connections behind the first."""
    levels, skips = nn.ModuleList(), []
    for i, (above, width) in enumerate(zip([widths[0], *widths[:-1]], widths, strict=True)):
        blocks = [block(width if j else above, width, i in attention_levels) for j in range(num_res_blocks)]
        coarsest = i == len(widths) - 1
        downsample = None if coarsest else nn.Conv2d(width, width, 3, stride=2, padding=1)
        levels.append(DownLevel(blocks, downsample))
        skips += [width] * (num_res_blocks + (not coarsest))
    return levels, skips


def up_path(
    block: BuildBlock, widths: Sequence[int], skips: list[int], attention_levels: Sequence[int]
) -> nn.ModuleList:
    """The levels from coarse to fine, each with one block more than on the way down."""
    levels, channels = nn.ModuleList(), widths[-1]
    per_level = len(skips) // len(widths)
    for i, width in reversed(list(enumerate(widths))):
        blocks = []
        for _ in range(per_level):
            blocks.append(block(channels + skips.pop(), width, i in attention_levels))
            channels = width
        levels.append(UpLevel(blocks, Upsample(width) if i else nn.Identity()))
    return levels


class UNet(nn.Module):
    """f_θ(z_t, t, c): the U-Net of latent diffusion (Rombach et al. 2022, section 3.3).

    Built as by Dhariwal & Nichol (2021), with transformers for attention.

    Args:
        in_channels: of z_t and cond.concat together.
        channel_mult: width of each level in `model_channels`; every level but the last halves the size.
        attention_levels: indices of the levels with attention, 0 the finest; the middle always has it.
        num_heads, head_channels: heads of every attention, or channels of every head; exactly one is given.
        context_channels: of cond.context; None for no cross-attention, as in the unconditional models.
        vector_channels: of cond.vector; None for no vector.
        transformer_depth: transformer blocks at each place with attention.
        dropout: rate inside residual blocks.
        scale_shift_norm: see `TimeResidualBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_levels: Sequence[int],
        num_heads: int | None,
        head_channels: int | None,
        context_channels: int | None,
        vector_channels: int | None = None,
        transformer_depth: int = 1,
        dropout: float = 0.0,
        scale_shift_norm: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.model_channels = in_channels, model_channels
        self.context_channels, self.vector_channels = context_channels, vector_channels
        self.downsampling = 2 ** (len(channel_mult) - 1)
        time_channels = 4 * model_channels

        def block(channels_in: int, channels: int, attends: bool) -> Block:
            residual = TimeResidualBlock(channels_in, channels, time_channels, dropout, scale_shift_norm)
            if not attends:
                return Block(residual, None)
            heads = count_heads(channels, num_heads, head_channels)
            return Block(residual, build_attention(channels, heads, context_channels, transformer_depth))

        check_levels(attention_levels, len(channel_mult))
        widths = [model_channels * m for m in channel_mult]
        self.time_embedding = Embed(model_channels, time_channels)
        self.vector_embedding = None if vector_channels is None else Embed(vector_channels, time_channels)
        self.conv_in = conv3x3(in_channels, widths[0])
        self.down, skips = down_path(block, widths, num_res_blocks, attention_levels)
        self.middle = nn.ModuleList([block(widths[-1], widths[-1], i == 0) for i in range(2)])
        self.up = up_path(block, widths, [widths[0], *skips], attention_levels)
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = zeroed(conv3x3(widths[0], out_channels))

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b out h w"]:
        """What the network predicts; t is what `schedule.network_time` gives."""
        self.check(z_t, cond)
        e = self.embed(t, cond)  # b e
        h = self.conv_in(z_t if cond.concat is None else torch.cat([z_t, cond.concat], dim=1))
        skips = [h]
        for level in self.down:
            skips += level(skips[-1], e, cond.context)
        h = skips[-1]  # b c h/2^n w/2^n
        for block in self.middle:
            h = block(h, e, cond.context)
        for level in self.up:
            h = level(h, skips, e, cond.context)
        return self.conv_out(F.silu(self.norm_out(h)))

    def embed(self, t: Float[Tensor, " b"], cond: Conditioning) -> Embedding:
        """silu(time + vector), once for all residual blocks, which each project it."""
        e = self.time_embedding(sinusoid(t, self.model_channels))
        if self.vector_embedding is not None:
            e = e + self.vector_embedding(cond.vector)
        return F.silu(e)

    def check(self, z_t: Float[Tensor, "b c h w"], cond: Conditioning) -> None:
        """ValueError for a size or condition that this U-Net does not take."""
        size = z_t.shape[-2:]
        if any(side % self.downsampling for side in size):
            raise ValueError(
                f"latents of {tuple(size)} do not divide by the U-Net's factor {self.downsampling}"
            )
        if cond.concat is not None and cond.concat.shape[-2:] != size:
            raise ValueError(
                f"cond.concat of {tuple(cond.concat.shape[-2:])} beside latents of {tuple(size)}"
            )
        channels = z_t.shape[1] + (0 if cond.concat is None else cond.concat.shape[1])
        if channels != self.in_channels:
            raise ValueError(
                f"z_t and cond.concat have {channels} channels, the U-Net takes {self.in_channels}"
            )
        slots = (
            ("context", cond.context, self.context_channels),
            ("vector", cond.vector, self.vector_channels),
        )
        for name, value, expected in slots:
            given = None if value is None else value.shape[-1]
            if given != expected:
                raise ValueError(f"cond.{name} has {given} channels, the U-Net takes {expected}")
