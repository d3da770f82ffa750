"""DiT: the denoiser as a transformer over patches of the latent."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm.errors import InvalidValue
from ldm.networks.attention import CrossAttention, SelfAttention
from ldm.networks.blocks import Checkpointed, autocast_off, zero_init
from ldm.networks.denoiser import Denoiser, EmbedMLP, build_vector_embedding, sinusoidal_embedding
from ldm.typing import Channels, Conditioning, Depth, Pixels

TIME_CHANNELS = 256
"""Channels of the sinusoidal embedding of t."""


def modulate(
    x: Float[Tensor, "b l c"], shift: Float[Tensor, "b c"], scale: Float[Tensor, "b c"]
) -> Float[Tensor, "b l c"]:
    """(1 + scale) norm(x) + shift, the norm without weights: adaptive layer norm (Peebles & Xie 2023)."""
    with autocast_off(x):
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return normed * (1 + scale[:, None]).to(x.dtype) + shift[:, None].to(x.dtype)


def sincos_positions(height: int, width: int, channels: int, device: torch.device) -> Float[Tensor, "l c"]:
    """[sin, cos] of each position's column, then of its row (Peebles & Xie 2023, 3.2; He et al. 2022)."""
    half = channels // 2
    columns, rows = (
        sinusoidal_embedding(torch.arange(n, device=device).float(), half) for n in (width, height)
    )
    columns, rows = columns.roll(half // 2, 1), rows.roll(half // 2, 1)  # cos, sin -> sin, cos
    table = [columns.expand(height, width, half), rows[:, None].expand(height, width, half)]
    return torch.cat(table, dim=2).flatten(0, 1)


class DiTBlock(Checkpointed):
    """x + g₁ attention(adaLN(x)), then x + g₂ mlp(adaLN(x)), shifts, scales and gates g from time and vector.

    The gates are initialised to zero: adaLN-Zero (Peebles & Xie 2023, 3.2). With a context, zero-initialised
    cross-attention is inserted between the two (Chen et al. 2024, PixArt-α, 2.3).
    """

    def __init__(self, channels: int, num_heads: int, context_channels: int | None, recompute: bool) -> None:
        super().__init__(recompute)
        self.modulation = nn.Linear(channels, 6 * channels)
        self.self_attention = SelfAttention(channels, num_heads, bias=True)
        self.cross_attention: CrossAttention | None = None
        if context_channels is not None:
            self.cross_attention = CrossAttention(channels, context_channels, num_heads)
        self.fc1, self.fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def compute(
        self,
        x: Float[Tensor, "b l c"],
        e: Float[Tensor, "b c"],
        context: Float[Tensor, "b m d"] | None,
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b l c"]:
        """Run the block; e is silu(time + vector)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(e).chunk(6, dim=1)  # b c each
        x = x + gate1[:, None] * self.self_attention(modulate(x, shift1, scale1))
        if self.cross_attention is not None:
            x = x + self.cross_attention(x, context, mask)
        h = F.gelu(self.fc1(modulate(x, shift2, scale2)), approximate="tanh")
        return x + gate2[:, None] * self.fc2(h)


class DiT(Denoiser):
    """f_θ(z_t, t, c): the diffusion transformer with adaLN-Zero (Peebles & Xie 2023).

    Args:
        in_channels: channels of z_t and cond.concat together.
        patch: side length of the patches that become tokens.
        channels: channels per token, a multiple of 4.
        context_channels: channels of cond.context; None for no cross-attention, as published.
        vector_channels: channels of cond.vector; None for no vector.
        num_labels: if set, cond.vector is one integer label per sample, in 0..num_labels-1; the last is null.
        activation_checkpointing: see `ldm.networks.blocks.Checkpointed`.
    """

    title = "the DiT"

    def __init__(
        self,
        in_channels: Channels,
        out_channels: Channels,
        patch: Pixels,
        channels: Channels,
        depth: Depth,
        num_heads: Channels,
        context_channels: Channels | None = None,
        vector_channels: Channels | None = None,
        num_labels: Channels | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(in_channels, context_channels, vector_channels, num_labels, patch)
        if channels % 4:
            raise InvalidValue(f"channels={channels}: use a multiple of 4, for sin and cos of row and column")
        self.patch = patch
        self.patches_in = nn.Conv2d(in_channels, channels, patch, stride=patch)
        self.time_embedding = EmbedMLP(TIME_CHANNELS, channels)
        self.vector_embedding = build_vector_embedding(vector_channels, num_labels, channels)
        self.blocks = nn.ModuleList(
            DiTBlock(channels, num_heads, context_channels, activation_checkpointing) for _ in range(depth)
        )
        self.modulation_out = nn.Linear(channels, 2 * channels)
        self.patches_out = nn.Linear(channels, patch**2 * out_channels)
        self.apply(initialize)

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b out h w"]:
        """Return the prediction y; t is `schedule.network_time(t)`."""
        h = self.patches_in(self.concat_inputs(z_t, cond))  # b d h/p w/p
        height, width = h.shape[2:]
        x = rearrange(h, "b d h w -> b (h w) d")
        x = x + sincos_positions(height, width, x.shape[2], x.device).to(x.dtype)
        e = self.time_embedding(sinusoidal_embedding(t, TIME_CHANNELS))  # b d
        if self.vector_embedding is not None:
            e = e + self.vector_embedding(cond.vector)
        e = F.silu(e)
        for block in self.blocks:
            x = block(x, e, cond.context, cond.context_mask)
        x = self.patches_out(modulate(x, *self.modulation_out(e).chunk(2, dim=1)))
        return rearrange(x, "b (h w) (p q c) -> b c (h p) (w q)", h=height, p=self.patch, q=self.patch)


def initialize(module: nn.Module) -> None:
    """Initialise as in DiT: Xavier uniform weights, zero biases, N(0, 0.02²) for time and vector, adaLN-Zero.

    As published (Peebles & Xie 2023): the patch convolution counts as a linear layer, and queries, keys and
    values as one matrix. `apply` visits a module after its submodules.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.xavier_uniform_(module.weight.detach().flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, EmbedMLP):
        for layer in (module.linear_in, module.linear_out):
            nn.init.normal_(layer.weight, std=0.02)
    elif isinstance(module, DiTBlock):
        zero_init(module.modulation)
        if module.cross_attention is not None:
            zero_init(module.cross_attention.out)
    elif isinstance(module, DiT):
        zero_init(module.modulation_out)
        zero_init(module.patches_out)
