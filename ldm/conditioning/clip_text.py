"""CLIP's text encoders, frozen: what Stable Diffusion 1, 2 and XL hear."""

import warnings
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ldm import pretrained
from ldm.conditioning import clip_tower
from ldm.conditioning.base import Conditioner, Size
from ldm.conditioning.tokenizer import ClipTokenizer
from ldm.errors import InvalidValue
from ldm.typing import Conditioning, Tokens


class ClipText(Conditioner):
    """c = hidden states of a CLIP's frozen text tower, every token of it (Radford et al. 2021).

    The null is the encoding of the empty text, computed when the weights are loaded and kept in `empty`.
    Checkpoints hold `empty` alone; the tower is named by `identity`. A text in chunks is encoded chunk by
    chunk, and their tokens stand side by side.

    Towers that do not read CLIP's byte pairs, or that read a token of their own behind them, are refused:
    SigLIP's, CLIPA's, CoCa's, those of RoBERTa, mT5 and NLLB, and those for many languages. Two in three of
    open_clip's models remain.

    | | name | skip_layers | final_norm | pooled |
    |---|---|---|---|---|
    | Stable Diffusion 1 | ViT-L-14-quickgelu | 0 | true | false |
    | Stable Diffusion 2 | ViT-H-14 | 1 | true | false |
    | SDXL, first tower | ViT-L-14-quickgelu | 1 | false | false |
    | SDXL, second tower | ViT-bigG-14 | 1 | false | true |

    Args:
        tokenizer: 77 tokens; padded with 49407 for Stable Diffusion, with 0 for open_clip.
        name: of the architecture among open_clip's model configs, but for those said above.
        weights: their name in `ldm.pretrained`, or one of open_clip's tags.
        skip_layers: blocks at the end whose work the hidden states do without.
        final_norm: whether the tower's last layer norm follows.
        pooled: whether the projected encoding of the end token, of the first chunk, fills the vector slot.
    """

    empty: Tensor
    empty_vector: Tensor | None

    def __init__(
        self,
        tokenizer: ClipTokenizer,
        name: str = "ViT-L-14-quickgelu",
        weights: str = "clip_vit_l14",
        dropout: float = 0.1,
        key: str = "caption",
        skip_layers: int = 0,
        final_norm: bool = True,
        pooled: bool = False,
    ) -> None:
        super().__init__(key, dropout)
        self.tokenizer, self.name, self.weights = tokenizer, name, weights
        self.skip_layers, self.final_norm, self.pooled = skip_layers, final_norm, pooled
        self.tower = clip_tower.text_tower(name, projected=pooled).requires_grad_(False)
        tower = self.tower
        if (tokenizer.length, tokenizer.vocabulary) != (tower.context_length, tower.vocab_size):
            raise InvalidValue(
                f"{name} reads {tower.context_length} tokens of {tower.vocab_size} kinds, but the tokenizer "
                f"gives {tokenizer.length} of {tokenizer.vocabulary}: give it length {tower.context_length} "
                "and no words of its own"
            )
        blocks = tower.transformer.resblocks
        if not 0 <= skip_layers < len(blocks):
            raise InvalidValue(f"skip_layers is in 0..{len(blocks) - 1} for {name}, got {skip_layers}")
        if not pooled:
            tower.transformer.resblocks = blocks[: len(blocks) - skip_layers]
        self.register_buffer("empty", torch.zeros(tokenizer.chunks * tokenizer.length, tower.width))
        vector = torch.zeros(clip_tower.architecture(name)["embed_dim"]) if pooled else None
        self.register_buffer("empty_vector", vector)
        pretrained.keep_out_of_checkpoints(self, "tower")
        self.train(False)

    def train(self, mode: bool = True) -> "ClipText":
        """The tower is frozen: it stays in evaluation mode."""
        super().train(mode)
        self.tower.eval()
        return self

    @torch.no_grad()
    def forward(self, values: list[str]) -> Conditioning:
        """The condition of each text."""
        tokens = self.tokenizer(values).to(self.empty.device)
        tokens = rearrange(tokens, "b (c l) -> (b c) l", c=self.tokenizer.chunks)
        states, last = self.states(tokens)  # (b c) l d
        context = rearrange(states, "(b c) l d -> b (c l) d", c=self.tokenizer.chunks)
        first = slice(None, None, self.tokenizer.chunks)
        return Conditioning(
            context=context, vector=self.pool(last[first], tokens[first]) if self.pooled else None
        )

    def states(self, tokens: Tokens) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"]]:
        """The hidden states that are the context, and the last block's."""
        tower = self.tower
        x = tower.token_embedding(tokens) + tower.positional_embedding
        blocks, states = tower.transformer.resblocks, x
        chosen = len(blocks) - 1 - (self.skip_layers if self.pooled else 0)
        for i, block in enumerate(blocks):
            x = block(x, attn_mask=tower.attn_mask)
            states = x if i == chosen else states
        return tower.ln_final(states) if self.final_norm else states, x

    def pool(self, last: Float[Tensor, "b l d"], tokens: Tokens) -> Float[Tensor, "b e"]:
        """The end token's encoding, normed and projected into the space that images share."""
        end = ((tokens == self.tokenizer.end).cumsum(1) == 0).sum(1)  # its first place: it may pad, too
        pooled = self.tower.ln_final(last[torch.arange(len(last)), end])
        projection = self.tower.text_projection
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """The recorded encoding of the empty text."""
        vector = None if self.empty_vector is None else self.empty_vector.expand(n, -1)
        return Conditioning(context=self.empty.expand(n, -1, -1), vector=vector)

    def load_pretrained(self) -> None:
        """Loads the tower and records the null. UserError where the weights are missing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # OpenAI's file is TorchScript, now deprecated
            clip_tower.load_tower(self.tower, self.name, self.weights, "text")
        one = self([""])
        self.empty.copy_(one.context[0])
        if self.empty_vector is not None:
            self.empty_vector.copy_(one.vector[0])

    def identity(self) -> dict[str, str]:
        return clip_tower.identity(self.name, self.weights)


class ClipTexts(Conditioner):
    """Several towers that read the same text, their tokens side by side along channels: SDXL's two.

    Podell et al. (2023), section 2.1. The null is zeros, as SDXL was trained and is sampled.

    Args:
        towers: each with as many tokens; those that pool fill the vector slot. Their own dropout is unused:
            one draw drops all.
    """

    def __init__(self, towers: Sequence[ClipText], dropout: float = 0.1, key: str = "caption") -> None:
        super().__init__(key, dropout)
        lengths = {len(tower.empty) for tower in towers}
        if len(lengths) != 1:
            raise InvalidValue(f"towers side by side have as many tokens each, not {sorted(lengths)}")
        self.towers = nn.ModuleList(towers)

    def forward(self, values: list[str]) -> Conditioning:
        """The condition of each text."""
        return self.joined([tower(values) for tower in self._each()])

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Zeros."""
        empty = self.joined([tower.null(n) for tower in self._each()])
        assert empty.context is not None
        vector = None if empty.vector is None else torch.zeros_like(empty.vector)
        return Conditioning(context=torch.zeros_like(empty.context), vector=vector)

    def joined(self, parts: list[Conditioning]) -> Conditioning:
        """Contexts and vectors side by side."""
        vectors = [part.vector for part in parts if part.vector is not None]
        context = torch.cat([part.context for part in parts], dim=2)
        return Conditioning(context=context, vector=torch.cat(vectors, dim=1) if vectors else None)

    def load_pretrained(self) -> None:
        """Loads every tower."""
        for tower in self._each():
            tower.load_pretrained()

    def identity(self) -> dict[str, str]:
        named = enumerate(tower.identity() for tower in self._each())
        return {f"{i}.{key}": value for i, one in named for key, value in one.items()}

    def _each(self) -> list[ClipText]:
        return list(self.towers)  # type: ignore[arg-type]
