"""Text to token ids: CLIP's byte-pair encoding, included in open_clip."""

import warnings
from collections.abc import Sequence
from functools import cache, cached_property, lru_cache
from typing import Any

import torch

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
        self._has_warned = False

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
        shape, room = (len(texts), self.chunks, self.length), self.length - 2
        ids = torch.full(shape, self._renumber(self.pad_token), dtype=torch.int64)
        for chunks, text in zip(ids, texts, strict=True):
            tokens = self._tokenize(text)
            if len(tokens) > self.chunks * room:
                self._warn(text, tokens[self.chunks * room :])
            for i, row in enumerate(chunks):
                part = [BEGIN, *tokens[i * room : (i + 1) * room], END]
                row[: len(part)] = torch.tensor([self._renumber(t) for t in part])
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
        if not self._has_warned:
            lost_text = _bpe().decode(cut).strip()
            warnings.warn(
                f"a text is longer than {self.chunks * self.length} tokens, and its end {lost_text!r} was "
                f"cut off: {text!r} (later cuts are not reported)",
                stacklevel=3,
            )
        self._has_warned = True
