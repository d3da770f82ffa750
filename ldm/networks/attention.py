"""Attention over tokens and over the positions of a feature map."""

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
    key_mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b l c"]:
    """softmax(q kᵀ / √d) v per head, heads concatenated (Vaswani et al. 2017, eq. 1).

    `key_mask` is true for keys that may be attended to; None for all.
    """
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        # The fused kernel's backward is 5 to 15 times slower here, half of a training step (torch 2.15).
        scores = q * q.shape[-1] ** -0.5 @ k.mT
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        out = scores.softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(out, "b n l d -> b l (n d)")


def check_heads(channels: int, num_heads: int) -> None:
    """Raise ValueError unless the heads divide the channels."""
    if num_heads < 1 or channels % num_heads:
        raise InvalidValue(f"{channels} channels cannot be split into {num_heads} attention heads")


def check_levels(attention_levels: Sequence[int], num_levels: int) -> None:
    """Raise ValueError for attention at a level that does not exist."""
    if not set(attention_levels) <= set(range(num_levels)):
        raise InvalidValue(f"attention levels {list(attention_levels)}: use levels in 0..{num_levels - 1}")


class SelfAttention(nn.Module):
    """Multi-head self-attention; one fused projection gives queries, keys and values."""

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
    """Multi-head cross-attention from tokens to a context (Rombach et al. 2022, section 3.3)."""

    def __init__(self, channels: int, context_channels: int, num_heads: int) -> None:
        super().__init__()
        check_heads(channels, num_heads)
        self.num_heads = num_heads
        self.q = nn.Linear(channels, channels, bias=False)
        self.kv = nn.Linear(context_channels, 2 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(
        self,
        x: Float[Tensor, "b l c"],
        context: Float[Tensor, "b m e"],
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b l c"]:
        """Return the attended context; `mask` is true for its tokens that may be attended to."""
        q = rearrange(self.q(x), "b l (n d) -> b n l d", n=self.num_heads)
        k, v = rearrange(self.kv(context), "b m (two n d) -> two b n m d", two=2, n=self.num_heads)
        return self.out(attend(q, k, v, mask))


class FeedForward(nn.Module):
    """W_out (W_value x ⊙ gelu(W_gate x)), hidden width 4 · channels: GEGLU (Shazeer 2020, eq. 6)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Two layers: the halves of one fused output are strided, which makes a CPU step 3 to 7 % slower.
        self.value = nn.Linear(channels, 4 * channels)
        self.gate = nn.Linear(channels, 4 * channels)
        self.out = nn.Linear(4 * channels, channels)

    def forward(self, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        return self.out(self.value(x) * F.gelu(self.gate(x)))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each pre-norm and residual.

    Args:
        cross_only: the first attention is cross-attention, too (the ×4 upscaler's outer levels).
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

    def forward(
        self,
        x: Float[Tensor, "b l c"],
        context: Float[Tensor, "b m e"],
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b l c"]:
        h = self.norm1(x)
        x = x + (self.first_attention(h, context, mask) if self.cross_only else self.self_attention(h))
        x = x + self.cross_attention(self.norm2(x), context, mask)
        return x + self.feed_forward(self.norm3(x))


class SpatialTransformer(nn.Module):
    """x + proj_out(blocks(proj_in(norm(x)))) over a map's positions (Rombach et al. 2022, appendix E.2.1).

    The projections are linear layers on tokens, equivalent to the published 1×1 convolutions.

    Args:
        depth: number of blocks.
        cross_only: see `TransformerBlock`; positions then attend only to the context.
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
        self,
        x: Float[Tensor, "b c h w"],
        context: Float[Tensor, "b m e"],
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        tokens = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        for block in self.blocks:
            tokens = block(tokens, context, mask)
        return x + rearrange(self.proj_out(tokens), "b (h w) c -> b c h w", h=x.shape[2])


class AttentionBlock(nn.Module):
    """x + attention(norm(x)) over a map's positions (Ho et al. 2020, appendix B)."""

    def __init__(self, channels: int, num_heads: int = 1, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, eps)
        self.attention = SelfAttention(channels, num_heads, bias=True)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        tokens = self.attention(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        return x + rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])
