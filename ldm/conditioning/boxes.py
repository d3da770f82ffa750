"""Layouts: labelled bounding boxes as tokens."""

import math
from typing import Annotated

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from ldm.conditioning.base import Conditioner, Size
from ldm.conditioning.transformer_text import Block
from ldm.errors import InvalidValue
from ldm.typing import Channels, Conditioning, Proportion, Range


class BoxTokens(Conditioner):
    """c = LayerNorm(Transformer(MLP(E[label], fourier(left, top, right, bottom)))), one token per box.

    A layout for cross-attention (Rombach et al. 2022, section 4.3.1), but with boxes as numbers instead of
    words, so one box is one token, as in GLIGEN (Li et al. 2023). The boxes are a set, without order.
    Label -1 marks padding, which is one learned token. The null consists of padding only.

    Args:
        num_labels: labels are 0..num_labels-1.
        width: channels per token.
        num_boxes: number of boxes per sample, including padding.
        depth: number of transformer blocks in which the boxes attend to each other; 0 for none.
        num_heads, head_channels, bias: of the blocks, as in `TransformerText`.
        frequencies: number of Fourier frequencies per coordinate, an octave apart, each with sine and cosine.
    """

    def __init__(
        self,
        num_labels: Channels,
        width: Channels,
        num_boxes: Channels,
        dropout: Proportion,
        depth: Annotated[int, Range(0, 256)] = 0,
        num_heads: Channels = 4,
        head_channels: Channels | None = None,
        bias: bool = True,
        frequencies: Annotated[int, Range(1, 64)] = 8,
        batch_key: str = "boxes",
    ) -> None:
        super().__init__(batch_key, dropout)
        if head_channels is None and width % num_heads:
            raise InvalidValue(f"width {width} is not divisible by num_heads {num_heads}")
        self.num_boxes, self.frequencies = num_boxes, frequencies
        self.embedding = nn.Embedding(num_labels, width)
        self.widen = nn.Linear(width + 8 * frequencies, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.none = nn.Parameter(torch.randn(width))  # the token of padding
        channels = width // num_heads if head_channels is None else head_channels
        self.blocks = nn.ModuleList(Block(width, num_heads, channels, bias, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, values: Float[Tensor, "b n 5"]) -> Conditioning:
        """Encode layouts, each box given as (label, left, top, right, bottom)."""
        if values.shape[1] != self.num_boxes:
            raise InvalidValue(
                f"batch[{self.batch_key!r}] has {values.shape[1]} boxes per sample, but the conditioner has "
                f"num_boxes={self.num_boxes}"
            )
        values = values.to(self.device)
        labels, is_box = values[..., 0].long(), values[..., 0] >= 0  # b n
        label_embedding = self.embedding(labels.clamp(min=0))
        hidden = self.widen(torch.cat([label_embedding, self.fourier_features(values[..., 1:])], dim=2))
        boxes = self.narrow(silu(hidden))  # b n d
        x = torch.where(is_box[..., None], boxes, self.none)  # b n d
        for block in self.blocks:
            x = block(x, torch.ones_like(is_box))
        return Conditioning(context=self.norm(x))

    def fourier_features(self, corners: Float[Tensor, "b n 4"]) -> Float[Tensor, "b n e"]:
        """sin and cos of 2^k pi times each coordinate (Mildenhall et al. 2020, eq. 4)."""
        angles = math.pi * corners[..., None] * 2.0 ** torch.arange(self.frequencies, device=corners.device)
        return rearrange([angles.sin(), angles.cos()], "s b n c k -> b n (s c k)")

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return the encoding of a layout without boxes."""
        empty = self(torch.full((1, self.num_boxes, 5), -1.0, device=self.device)).context
        assert empty is not None
        return Conditioning(context=empty.expand(n, -1, -1))
