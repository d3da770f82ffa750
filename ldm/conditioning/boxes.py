"""Boxes with labels as tokens: a layout."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from ldm.conditioning.base import Conditioner, Size
from ldm.conditioning.transformer_text import Block
from ldm.errors import InvalidValue
from ldm.typing import Conditioning


class BoxTokens(Conditioner):
    """c = LayerNorm(Transformer(MLP(E[label], waves(left, top, right, bottom)))), one token a box.

    A layout heard by cross-attention (Rombach et al. 2022, section 4.3.1), its boxes as numbers and not as
    words, so that a box is one token, as in GLIGEN (Li et al. 2023). They are a set, and have no order.
    A label of -1 is no box: one learned token for all of those. The null is no box at all.

    Args:
        num_labels: labels are 0..num_labels-1.
        width: of a token.
        num_boxes: of every sample, those of label -1 included.
        depth: transformer blocks in which the boxes attend to each other; 0 for none.
        num_heads, head_channels, bias: of them, as in `TransformerText`.
        frequencies: of each coordinate's waves, an octave apart.
    """

    def __init__(
        self,
        num_labels: int,
        width: int,
        num_boxes: int,
        dropout: float,
        depth: int = 0,
        num_heads: int = 4,
        head_channels: int | None = None,
        bias: bool = True,
        frequencies: int = 8,
        key: str = "boxes",
    ) -> None:
        super().__init__(key, dropout)
        if head_channels is None and width % num_heads:
            raise InvalidValue(f"width {width} does not divide by num_heads {num_heads}")
        self.num_boxes, self.frequencies = num_boxes, frequencies
        self.embedding = nn.Embedding(num_labels, width)
        self.widen = nn.Linear(width + 8 * frequencies, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.none = nn.Parameter(torch.randn(width))
        channels = width // num_heads if head_channels is None else head_channels
        self.blocks = nn.ModuleList(Block(width, num_heads, channels, bias, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, values: Float[Tensor, "b n 5"]) -> Conditioning:
        """The condition of each layout."""
        if values.shape[1] != self.num_boxes:
            raise InvalidValue(
                f"{self.key} holds {values.shape[1]} boxes a sample, the condition {self.num_boxes}"
            )
        values = values.to(self.device)
        labels, there = values[..., 0].long(), values[..., 0] >= 0  # b n
        named = self.embedding(labels.clamp(min=0))
        wide = self.widen(torch.cat([named, self.waves(values[..., 1:])], dim=2))
        boxes = self.narrow(silu(wide))  # b n d
        x = torch.where(there[..., None], boxes, self.none)  # b n d
        for block in self.blocks:
            x = block(x, torch.ones_like(there))
        return Conditioning(context=self.norm(x))

    def waves(self, corners: Float[Tensor, "b n 4"]) -> Float[Tensor, "b n e"]:
        """sin and cos of 2^k pi times each coordinate (Mildenhall et al. 2020, eq. 4)."""
        angles = math.pi * corners[..., None] * 2.0 ** torch.arange(self.frequencies, device=corners.device)
        return rearrange([angles.sin(), angles.cos()], "s b n c k -> b n (s c k)")

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """The layout without a box."""
        one = self(torch.full((1, self.num_boxes, 5), -1.0, device=self.device)).context
        assert one is not None
        return Conditioning(context=one.expand(n, -1, -1))
