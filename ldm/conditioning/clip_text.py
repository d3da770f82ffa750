"""CLIP's text encoders, frozen: those of Stable Diffusion 1, 2 and XL."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm import pretrained
from ldm.conditioning import clip_tower
from ldm.conditioning.base import Conditioner, Size, repeat_samples
from ldm.conditioning.prompt_weights import weigh
from ldm.conditioning.text import FrozenTextEncoder
from ldm.conditioning.tokenizer import ClipTokenizer
from ldm.errors import InvalidValue
from ldm.typing import Conditioning, NonNegativeInt, Proportion, Tokens


class ClipText(FrozenTextEncoder):
    """c = the hidden states of CLIP's frozen text tower, one per token (Radford et al. 2021).

    The null is the encoding of the empty text, computed when the weights are loaded and stored in `empty`.
    Checkpoints hold only `empty`, and name the tower's weights (`describe_frozen_weights`). The chunks of a
    long text are encoded separately, and their tokens concatenated.

    Towers without CLIP's byte-pair vocabulary, or that append a token of their own to the text, are refused:
    SigLIP's, CLIPA's, CoCa's, those on RoBERTa, mT5 and NLLB, and the multilingual ones. Two in three of
    open_clip's models remain.

    | | name | skip_layers | final_norm | pooled |
    |---|---|---|---|---|
    | Stable Diffusion 1 | ViT-L-14-quickgelu | 0 | true | false |
    | Stable Diffusion 2 | ViT-H-14 | 1 | true | false |
    | SDXL, first tower | ViT-L-14-quickgelu | 1 | false | false |
    | SDXL, second tower | ViT-bigG-14 | 1 | false | true |

    Args:
        tokenizer: 77 tokens; padded with 49407 for Stable Diffusion 1, with 0 for open_clip.
        name: of the architecture in open_clip's model configs, except those named above.
        weights: a name in `ldm.pretrained`, or one of open_clip's tags.
        skip_layers: number of blocks at the end that the hidden states skip.
        final_norm: whether to apply the tower's last layer norm to the hidden states.
        pooled: whether the projected encoding of the first chunk's end token is the vector.
        mask_padding: whether the denoiser attends to the text alone; false as published, where it attends to
            the padding, too.
    """

    tokenizer: ClipTokenizer
    empty: Tensor
    empty_vector: Tensor | None

    def __init__(
        self,
        tokenizer: ClipTokenizer,
        name: str = "ViT-L-14-quickgelu",
        weights: str = "clip_vit_l14",
        dropout: Proportion = 0.1,
        batch_key: str = "caption",
        skip_layers: NonNegativeInt = 0,
        final_norm: bool = True,
        pooled: bool = False,
        mask_padding: bool = False,
    ) -> None:
        super().__init__(batch_key, dropout)
        self.tokenizer, self.name, self.weights = tokenizer, name, weights
        self.mask_padding = mask_padding
        self.skip_layers, self.final_norm, self.pooled = skip_layers, final_norm, pooled
        self.tower = clip_tower.build_text_tower(name, projected=pooled).requires_grad_(False)
        tower = self.tower
        if (tokenizer.length, tokenizer.vocab_size) != (tower.context_length, tower.vocab_size):
            raise InvalidValue(
                f"{name} takes {tower.context_length} tokens of a vocabulary of {tower.vocab_size}, but the "
                f"tokenizer gives {tokenizer.length} of {tokenizer.vocab_size}: set "
                f"tokenizer.length={tower.context_length} and remove tokenizer.words"
            )
        blocks = tower.transformer.resblocks
        if not 0 <= skip_layers < len(blocks):
            raise InvalidValue(f"skip_layers is in 0..{len(blocks) - 1} for {name}, got {skip_layers}")
        if not pooled:
            tower.transformer.resblocks = blocks[: len(blocks) - skip_layers]
        self.register_buffer("empty", torch.zeros(tokenizer.chunks * tokenizer.length, tower.width))
        vector = torch.zeros(clip_tower.model_config(name)["embed_dim"]) if pooled else None
        self.register_buffer("empty_vector", vector)
        pretrained.exclude_from_state_dict(self, "tower")
        self.train(False)

    def train(self, mode: bool = True) -> "ClipText":
        """Set the mode of all but the frozen tower, which stays in evaluation mode."""
        super().train(mode)
        self.tower.eval()
        return self

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Encode texts."""
        weights: Float[Tensor, "b l"] | None = None
        if self.uses_weights:
            tokens, weights = self.tokenizer.with_weights(texts)
        else:
            tokens = self.tokenizer(texts)
        mask = self.context_mask(tokens)
        tokens = tokens.to(self.empty.device)
        tokens = rearrange(tokens, "b (c l) -> (b c) l", c=self.tokenizer.chunks)
        states, last_states = self.hidden_states(tokens)  # (b c) l d
        context = rearrange(states, "(b c) l d -> b (c l) d", c=self.tokenizer.chunks)
        context = context if weights is None else weigh(context, self.empty[None], weights)
        first_chunks = slice(None, None, self.tokenizer.chunks)
        vector = self.pool(last_states[first_chunks], tokens[first_chunks]) if self.pooled else None
        return Conditioning(context=context, context_mask=mask, vector=vector)

    def context_mask(self, tokens: Tokens) -> Bool[Tensor, "b l"] | None:
        """Return which tokens the denoiser may attend to; None for all."""
        return self.tokenizer.text_mask(tokens).to(self.empty.device) if self.mask_padding else None

    def hidden_states(self, tokens: Tokens) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"]]:
        """Return the hidden states for the context, and those of the last block."""
        tower = self.tower
        x = tower.token_embedding(tokens) + tower.positional_embedding
        blocks, states = tower.transformer.resblocks, x
        context_block = len(blocks) - 1 - (self.skip_layers if self.pooled else 0)
        for i, block in enumerate(blocks):
            x = block(x, attn_mask=tower.attn_mask)
            states = x if i == context_block else states
        return tower.ln_final(states) if self.final_norm else states, x

    def pool(self, last_states: Float[Tensor, "b l d"], tokens: Tokens) -> Float[Tensor, "b e"]:
        """Return the end token's encoding, normed and projected into the joint space with images."""
        end = ((tokens == self.tokenizer.end).cumsum(1) == 0).sum(1)  # the first: it may be the padding, too
        pooled = self.tower.ln_final(last_states[torch.arange(len(last_states)), end])
        projection = self.tower.text_projection
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return the stored encoding of the empty text."""
        vector = None if self.empty_vector is None else self.empty_vector[None]
        mask = self.context_mask(self.tokenizer([""])) if self.mask_padding else None
        empty = Conditioning(context=self.empty[None], context_mask=mask, vector=vector)
        return repeat_samples(empty, n)

    def set_chunks(self, chunks: int) -> None:
        length = self.tokenizer.length
        self.tokenizer.chunks = chunks
        self.empty = self.empty[:length].repeat(chunks, 1)  # each chunk of the empty text is the same

    def load_pretrained(self) -> None:
        """Load the tower and compute the null. UserError if the weights are missing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # OpenAI's file is TorchScript, now deprecated
            clip_tower.load_tower(self.tower, self.name, self.weights, "text")
        empty = self([""])
        self.empty.copy_(empty.context[0])
        if self.empty_vector is not None:
            self.empty_vector.copy_(empty.vector[0])

    def describe_frozen_weights(self) -> dict[str, str]:
        return clip_tower.describe_weights(self.name, self.weights)


class ClipTexts(Conditioner):
    """Several towers that encode the same text, their tokens concatenated along channels: SDXL's two.

    Podell et al. (2023), section 2.1. The null is zeros, as SDXL was trained and is sampled.

    Args:
        towers: all with the same number of tokens; the pooled ones fill the vector. Their own dropout is
            unused: they are dropped together.
    """

    def __init__(
        self, towers: Sequence[ClipText], dropout: Proportion = 0.1, batch_key: str = "caption"
    ) -> None:
        super().__init__(batch_key, dropout)
        lengths = {len(tower.empty) for tower in towers}
        if len(lengths) != 1:
            raise InvalidValue(f"the towers need the same number of tokens, not {sorted(lengths)}")
        if len({tower.mask_padding for tower in towers}) != 1:
            raise InvalidValue("the towers need the same mask_padding: set all to true or all to false")
        self.towers = nn.ModuleList(towers)

    def forward(self, values: list[str]) -> Conditioning:
        """Encode texts."""
        return self.concatenate([tower(values) for tower in self._towers()])

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return zeros."""
        empty = self.concatenate([tower.null(n) for tower in self._towers()])
        assert empty.context is not None
        vector = None if empty.vector is None else torch.zeros_like(empty.vector)
        return replace(empty, context=torch.zeros_like(empty.context), vector=vector)

    def concatenate(self, parts: list[Conditioning]) -> Conditioning:
        """Concatenate contexts and vectors along channels; the mask is that of the first tower."""
        vectors = [part.vector for part in parts if part.vector is not None]
        context = torch.cat([part.context for part in parts], dim=2)
        vector = torch.cat(vectors, dim=1) if vectors else None
        return Conditioning(context=context, context_mask=parts[0].context_mask, vector=vector)

    def load_pretrained(self) -> None:
        """Load every tower."""
        for tower in self._towers():
            tower.load_pretrained()

    def describe_frozen_weights(self) -> dict[str, str]:
        identities = enumerate(tower.describe_frozen_weights() for tower in self._towers())
        return {f"{i}.{key}": value for i, identity in identities for key, value in identity.items()}

    def _towers(self) -> list[ClipText]:
        return list(self.towers)  # type: ignore[arg-type]
