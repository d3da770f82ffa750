"""A text encoder trained from scratch together with the denoiser."""

from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from ldm.conditioning.base import Size, repeat_samples
from ldm.conditioning.prompt_weights import weigh
from ldm.conditioning.text import TextEncoder
from ldm.conditioning.tokenizer import ClipTokenizer
from ldm.errors import InvalidValue
from ldm.networks.attention import attend
from ldm.typing import Channels, Conditioning, Depth, Proportion, Tokens


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): a pre-norm transformer block (Xiong et al. 2020).

    Initialized as in CLIP (Radford et al. 2021): the std of each branch's last layer falls with `depth`, the
    number of blocks of the whole stack.
    """

    def __init__(self, width: int, num_heads: int, head_channels: int, bias: bool, depth: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * num_heads * head_channels, bias=bias)
        self.out = nn.Linear(num_heads * head_channels, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.widen.weight, std=(2 * width) ** -0.5)
        for output_layer in (self.out, self.narrow):
            nn.init.normal_(output_layer.weight, std=(2 * depth * width) ** -0.5)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        qkv = self.qkv(self.norm_attention(x))  # b l 3d
        q, k, v = rearrange(qkv, "b l (n h d) -> n b h l d", n=3, h=self.num_heads)
        x = x + self.out(attend(q, k, v, mask))
        return x + self.narrow(gelu(self.widen(self.norm_mlp(x))))


class TransformerText(TextEncoder):
    """c = LayerNorm(Transformer(E[tokens] + P)): the text encoder of Rombach et al. (2022), 3.3 and E.2.1.

    Attention is bidirectional, with padding masked; the context is zero at padding. The null is the encoding
    of the empty text, so it is learned.

    The published one (width 1280, depth 32, 8 heads of 64 channels, no bias) has 581,994,042 parameters:
    503,827,200 in blocks, positions and norm, as here; an embedding of BERT's 30,522 word pieces, where ours
    has CLIP's 49,408 byte pairs; and 39,098,682 in a layer of logits that is never used.

    Args:
        pooled: whether the mean over all tokens but the padding is the vector, too.
        head_channels: channels per attention head; None divides `width` by `num_heads`.
        bias: of queries, keys and values.
        mask_padding: whether the denoiser attends to the text alone, and not to the zeros of the padding.
    """

    tokenizer: ClipTokenizer
    chunks_are_fixed = True

    def __init__(
        self,
        tokenizer: ClipTokenizer,
        width: Channels,
        depth: Depth,
        num_heads: Channels,
        pooled: bool = False,
        dropout: Proportion = 0.1,
        batch_key: str = "caption",
        head_channels: Channels | None = None,
        bias: bool = True,
        mask_padding: bool = False,
    ) -> None:
        super().__init__(batch_key, dropout)
        if head_channels is None and width % num_heads:
            raise InvalidValue(f"width {width} is not divisible by num_heads {num_heads}")
        if tokenizer.chunks > 1:
            raise InvalidValue(
                f"TransformerText takes 1 chunk, not {tokenizer.chunks}: set tokenizer.chunks=1 and a larger "
                "tokenizer.length"
            )
        self.tokenizer, self.pooled, self.mask_padding = tokenizer, pooled, mask_padding
        self.token_embedding = nn.Embedding(tokenizer.vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(tokenizer.length, width))
        channels = width // num_heads if head_channels is None else head_channels
        self.blocks = nn.ModuleList(Block(width, num_heads, channels, bias, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)

    def forward(self, values: list[str]) -> Conditioning:
        """Encode texts. UserError for a word that is not in the tokenizer's vocabulary."""
        if not self.uses_weights:
            return self.encode(self.tokenizer(values))
        tokens, weights = self.tokenizer.with_weights(values)
        cond, empty = self.encode(tokens), self.encode(self.tokenizer([""]))
        assert cond.context is not None and empty.context is not None
        return replace(cond, context=weigh(cond.context, empty.context, weights))

    def encode(self, tokens: Tokens) -> Conditioning:
        """Encode token ids."""
        tokens = tokens.to(self.position_embedding.device)  # b l
        mask = self.tokenizer.text_mask(tokens)  # b l
        x = self.token_embedding(tokens) + self.position_embedding  # b l d
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x) * mask[..., None]  # b l d
        return Conditioning(
            context=x,
            context_mask=mask if self.mask_padding else None,
            vector=x.sum(1) / mask.sum(1, keepdim=True) if self.pooled else None,
        )

    def set_chunks(self, chunks: int) -> None:
        if chunks > 1:
            raise InvalidValue(
                f"prompt_chunks={chunks}, but this model's text encoder was trained with the denoiser, on "
                f"texts of up to {self.tokenizer.max_tokens} tokens: use prompt_chunks=null and shorter "
                "prompts"
            )

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return the encoding of the empty text."""
        empty = self([""])
        return repeat_samples(empty, n)
