"""A text encoder trained from scratch together with the denoiser."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from ldm.conditioning.base import Conditioner
from ldm.conditioning.tokenizer import ClipTokenizer
from ldm.typing import Conditioning


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): a pre-norm transformer block (Xiong et al. 2020).

    Initial weights as in CLIP (Radford et al. 2021): the branches shrink with the depth of the whole stack.
    """

    def __init__(self, width: int, num_heads: int, depth: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.widen.weight, std=(2 * width) ** -0.5)
        for last in (self.out, self.narrow):
            nn.init.normal_(last.weight, std=(2 * depth * width) ** -0.5)

    def forward(self, x: Float[Tensor, "b l d"], real: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        qkv = self.qkv(self.norm_attention(x))  # b l 3d
        q, k, v = rearrange(qkv, "b l (n h d) -> n b h l d", n=3, h=self.num_heads)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None, :])
        x = x + self.out(rearrange(attended, "b h l d -> b l (h d)"))
        return x + self.narrow(gelu(self.widen(self.norm_mlp(x))))


class TransformerText(Conditioner):
    """c = LayerNorm(Transformer(E[tokens] + P)): the text encoder of Rombach et al. (2022), 3.3 and E.2.1.

    Attention is bidirectional and blind to padding; padded places of the context are zero. The null is
    its own encoding of the empty text, so it is learned.

    Args:
        pooled: whether the mean over the real tokens fills the vector slot too.
    """

    def __init__(
        self,
        tokenizer: ClipTokenizer,
        width: int,
        depth: int,
        num_heads: int,
        pooled: bool = False,
        dropout: float = 0.1,
        key: str = "caption",
    ) -> None:
        super().__init__(key, dropout)
        if width % num_heads:
            raise ValueError(f"width {width} does not divide by num_heads {num_heads}")
        self.tokenizer, self.pooled = tokenizer, pooled
        self.token_embedding = nn.Embedding(tokenizer.vocabulary, width)
        self.position_embedding = nn.Parameter(torch.empty(tokenizer.length, width))
        self.blocks = nn.ModuleList(Block(width, num_heads, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)

    def forward(self, values: list[str]) -> Conditioning:
        """The condition of each text. UserError for a word that the tokenizer does not know."""
        tokens = self.tokenizer(values).to(self.position_embedding.device)  # b l
        ends = tokens == self.tokenizer.end
        real = ends.cumsum(1) - ends.long() == 0  # b l  up to the first end: padding may be that token too
        x = self.token_embedding(tokens) + self.position_embedding  # b l d
        for block in self.blocks:
            x = block(x, real)
        x = self.norm(x) * real[..., None]  # b l d
        return Conditioning(context=x, vector=x.sum(1) / real.sum(1, keepdim=True) if self.pooled else None)

    def null(self, n: int) -> Conditioning:
        """The encoding of the empty text."""
        one = self([""])
        vector = None if one.vector is None else one.vector.expand(n, -1)
        return Conditioning(context=one.context.expand(n, -1, -1), vector=vector)
