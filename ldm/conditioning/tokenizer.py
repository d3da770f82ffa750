"""Text to token ids: CLIP's byte-pair encoding, included in open_clip."""

import warnings
from collections.abc import Sequence
from functools import cache, cached_property, lru_cache
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from ldm.conditioning.prompt_weights import parse
from ldm.errors import InvalidValue, UserError
from ldm.typing import Channels, NonNegativeInt, Tokens

BEGIN, END = 49406, 49407
VOCAB_SIZE = 49408


@cache
def _bpe() -> Any:
    # Imported here: open_clip reads its merge table on import, and a constructor must not.
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@lru_cache(maxsize=1 << 16)
def _encode(text: str) -> tuple[int, ...]:
    """Return the text's byte pairs; cached, as cleaning a text takes longer than a small U-Net's layer."""
    return tuple(_bpe().encode(text))


@lru_cache(maxsize=1 << 16)
def _split_words(text: str) -> tuple[str, ...]:
    """Return the words of the cleaned text."""
    return tuple(_bpe().pat.findall(_bpe().clean_fn(text)))


class ClipTokenizer:
    """begin, the text's byte pairs, end, then padding up to `length` (Radford et al. 2021).

    Args:
        length: tokens per chunk, begin and end included. The rest is cut off, with a warning the first time.
        pad_token: CLIP's id for the padding: 49407 for Stable Diffusion 1, 0 for open_clip.
        words: the only words that texts may use, each one token of CLIP's; None allows all. The ids are then
            renumbered from 0 in CLIP's order, so that a small model's embedding has no unused rows.
        chunks: number of chunks for a longer text, each with its own begin, end and padding.

    `warns` is whether the next text that is cut off gives a warning.
    """

    def __init__(
        self,
        length: Channels,
        pad_token: NonNegativeInt,
        words: Sequence[str] | None = None,
        chunks: Channels = 1,
    ) -> None:
        if length < 2:
            raise InvalidValue(f"length is at least 2, for begin and end, got {length}")
        if chunks < 1:
            raise InvalidValue(f"chunks is at least 1, got {chunks}")
        if words is not None and len(set(words)) != len(words):
            raise InvalidValue(f"words has {len(words) - len(set(words))} duplicates: remove them")
        self.length, self.pad_token, self.chunks = length, pad_token, chunks
        self.words = None if words is None else tuple(words)
        self.warns = True

    @property
    def vocab_size(self) -> int:
        """The number of different ids."""
        return VOCAB_SIZE if self.words is None else len(self.words) + len({BEGIN, END, self.pad_token})

    @property
    def end(self) -> int:
        """The id of the end token."""
        return self._renumber(END)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Return the token ids, chunk after chunk. UserError for a word that is not in `words`."""
        return self._arrange([self._tokenize(text) for text in texts], texts)

    def with_weights(self, texts: Sequence[str]) -> tuple[Tokens, Float[Tensor, "b l"]]:
        """Return the token ids of texts with weights in brackets, and the weight of each token.

        Begin, end and padding have the weight 1. UserError as `__call__`, and for ill-formed brackets.
        """
        parts = [parse(text) for text in texts]
        tokens = [[(t, part.weight) for part in row for t in self._tokenize(part.text)] for row in parts]
        weights = torch.ones(len(texts), self.chunks, self.length)
        for i, row in enumerate(tokens):
            values = torch.tensor([weight for _, weight in row[: self.max_tokens]])
            for chunk, part in zip(weights[i], values.split(self.length - 2), strict=False):
                chunk[1 : 1 + len(part)] = part
        return self._arrange([[t for t, _ in row] for row in tokens], texts), weights.flatten(1)

    def text_mask(self, tokens: Tokens) -> Bool[Tensor, "b l"]:
        """Return where the tokens are no padding: up to each chunk's first end token."""
        ends = rearrange(tokens, "b (c l) -> b c l", c=self.chunks) == self.end
        return (ends.cumsum(2) - ends.long() == 0).flatten(1)

    @property
    def max_tokens(self) -> int:
        """The number of a text's tokens that are not cut off."""
        return self.chunks * (self.length - 2)

    def cut_off(self, text: str, weighted: bool = False) -> str:
        """Return the end of a text that does not fit in the chunks; empty if all of it fits."""
        plain = "".join(part.text for part in parse(text)) if weighted else text
        cut = self._tokenize(plain)[self.max_tokens :]
        return str(_bpe().decode(cut)).strip() if cut else ""

    def _arrange(self, tokens: Sequence[list[int]], texts: Sequence[str]) -> Tokens:
        """Return the tokens in chunks, with begin, end and padding."""
        shape, room = (len(texts), self.chunks, self.length), self.length - 2
        ids = torch.full(shape, self._renumber(self.pad_token), dtype=torch.int64)
        for chunks, row, text in zip(ids, tokens, texts, strict=True):
            if len(row) > self.max_tokens:
                self._warn(text, row[self.max_tokens :])
            for i, chunk in enumerate(chunks):
                part = [BEGIN, *row[i * room : (i + 1) * room], END]
                chunk[: len(part)] = torch.tensor([self._renumber(t) for t in part])
        return ids.flatten(1)

    def _tokenize(self, text: str) -> list[int]:
        if self.words is None:
            return list(_encode(text))
        words = _split_words(text)
        for word in words:
            if word not in self.words:
                raise UserError(
                    f"{word!r} in {text!r} is not one of the {len(self.words)} words that this model's "
                    f"tokenizer has ({', '.join(self.words)}): use only those, or train a model with "
                    "conditioner=transformer_text, which takes any word"
                )
        return [token for word in words for token in _encode(word)]

    def _renumber(self, token: int) -> int:
        return token if self.words is None else self._new_ids[token]

    @cached_property
    def _new_ids(self) -> dict[int, int]:
        assert self.words is not None
        ids = {BEGIN, END, self.pad_token}
        for word in self.words:
            tokens = _bpe().encode(word)
            if len(tokens) != 1:
                pieces = ", ".join(_bpe().decode([t]) for t in tokens)
                raise InvalidValue(
                    f"words has {word!r}, which is {len(tokens)} of CLIP's tokens: {pieces}; "
                    "each word must be one token"
                )
            ids.update(tokens)
        new_ids = {token: rank for rank, token in enumerate(sorted(ids))}
        assert len(new_ids) == self.vocab_size, f"{len(new_ids)} ids, but expected {self.vocab_size}"
        return new_ids

    def _warn(self, text: str, cut: list[int]) -> None:
        if self.warns:
            warnings.warn(
                f"a text is longer than {self.chunks * self.length} tokens, and its end "
                f"{_bpe().decode(cut).strip()!r} was cut off: {text!r} (later cuts are not reported; a "
                "frozen text encoder takes longer texts with a larger tokenizer.chunks)",
                stacklevel=4,
            )
        self.warns = False
