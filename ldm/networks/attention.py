"""Attention over tokens and over the places of a feature map."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm.errors import InvalidValue
from ldm.networks.blocks import GroupNorm, LayerNorm, zero_init


def attend(
    q: Float[Tensor, "b n l d"],
    k: Float[Tensor, "b n m d"],
    v: Float[Tensor, "b n m d"],
    seen: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b l c"]:
    """softmax(q kᵀ / √d) v of every head, heads side by side (Vaswani et al. 2017, eq. 1).

    `seen` says which keys may be attended to; None for all.
    """
    mask = None if seen is None else seen[:, None, None, :]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        # There the fused kernel's backward takes 5 to 15 times as long, half of a step (torch 2.15).
        scores = q * q.shape[-1] ** -0.5 @ k.mT
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        out = scores.softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(out, "b n l d -> b l (n d)")


def check_heads(channels: int, num_heads: int) -> None:
    """ValueError for heads that do not divide the channels."""
    if num_heads < 1 or channels % num_heads:
        raise InvalidValue(f"{channels} channels do not divide into {num_heads} attention heads")


def check_levels(attention_levels: Sequence[int], num_levels: int) -> None:
    """ValueError for attention at a level that is not there."""
    if not set(attention_levels) <= set(range(num_levels)):
        raise InvalidValue(f"attention levels {list(attention_levels)} are not all among 0..{num_levels - 1}")


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to each other; one product gives queries, keys and values."""

    def __init__(self, channels: int, num_heads: int, bias: bool = False) -> None:
        super().__init__()
        check_heads(channels, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        q, k, v = rearrange(self.qkv(x), "b l (three n d) -> three b n l d", three=3, n=self.num_heads)
        return self.out(attend(q, k, v))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a context (Rombach et al. 2022, section 3.3)."""

    def __init__(self, channels: int, context_channels: int, num_heads: int) -> None:
        super().__init__()
        check_heads(channels, num_heads)
        self.num_heads = num_heads
        self.q = nn.Linear(channels, channels, bias=False)
        self.kv = nn.Linear(context_channels, 2 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "b l c"], context: Float[Tensor, "b m e"]) -> Float[Tensor, "b l c"]:
        q = rearrange(self.q(x), "b l (n d) -> b n l d", n=self.num_heads)
        k, v = rearrange(self.kv(context), "b m (two n d) -> two b n m d", two=2, n=self.num_heads)
        return self.out(attend(q, k, v))


class FeedForward(nn.Module):
    """W_out (W_value x ⊙ gelu(W_gate x)), four times as wide inside: GEGLU (Shazeer 2020, eq. 6)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Two layers: halves of one product's output are strided, which costs a step 3 to 7 % on a CPU.
        self.value = nn.Linear(channels, 4 * channels)
        self.gate = nn.Linear(channels, 4 * channels)
        self.out = nn.Linear(4 * channels, channels)

    def forward(self, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        return self.out(self.value(x) * F.gelu(self.gate(x)))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward: pre-norm and residual each.

    Args:
        cross_only: the first attention, too, is to the context (the ×4 upscaler's outer levels).
    """

    def __init__(self, channels: int, context_channels: int, num_heads: int, cross_only: bool) -> None:
        super().__init__()
        self.cross_only = cross_only
        self.norm1 = LayerNorm(channels)
        if cross_only:
            self.first_attention = CrossAttention(channels, context_channels, num_heads)
        else:
            self.self_attention = SelfAttention(channels, num_heads)
        self.norm2 = LayerNorm(channels)
        self.cross_attention = CrossAttention(channels, context_channels, num_heads)
        self.norm3 = LayerNorm(channels)
        self.feed_forward = FeedForward(channels)

    def forward(self, x: Float[Tensor, "b l c"], context: Float[Tensor, "b m e"]) -> Float[Tensor, "b l c"]:
        h = self.norm1(x)
        x = x + (self.first_attention(h, context) if self.cross_only else self.self_attention(h))
        x = x + self.cross_attention(self.norm2(x), context)
        return x + self.feed_forward(self.norm3(x))


class SpatialTransformer(nn.Module):
    """x + proj_out(blocks(proj_in(norm(x)))) over the places of a map (Rombach et al. 2022, appendix E.2.1).

    The projections are linear layers on tokens, which is what the published 1×1 convolutions compute.

    Args:
        depth: number of blocks.
        cross_only: see `TransformerBlock`; places then attend to the context alone.
    """

    def __init__(
        self, channels: int, context_channels: int, num_heads: int, depth: int, cross_only: bool = False
    ) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, context_channels, num_heads, cross_only) for _ in range(depth)
        )
        self.proj_out = zero_init(nn.Linear(channels, channels))

    def forward(
        self, x: Float[Tensor, "b c h w"], context: Float[Tensor, "b m e"]
    ) -> Float[Tensor, "b c h w"]:
        tokens = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        for block in self.blocks:
            tokens = block(tokens, context)
        return x + rearrange(self.proj_out(tokens), "b (h w) c -> b c h w", h=x.shape[2])


class AttentionBlock(nn.Module):
    """x + attention(norm(x)) over the places of a map (Ho et al. 2020, appendix B)."""

    def __init__(self, channels: int, num_heads: int = 1, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, eps)
        self.attention = SelfAttention(channels, num_heads, bias=True)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        tokens = self.attention(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        return x + rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])
