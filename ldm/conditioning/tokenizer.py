"""Text to token ids: CLIP's byte-pair encoding, which ships inside open_clip."""

import warnings
from collections.abc import Sequence
from functools import cache, cached_property, lru_cache
from typing import Any

import torch

from ldm.errors import InvalidValue, UserError
from ldm.typing import Tokens

BEGIN, END = 49406, 49407
VOCABULARY = 49408


@cache
def _bpe() -> Any:
    # Imported here: open_clip reads its merge table when imported, and a constructor must not.
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@lru_cache(maxsize=1 << 16)
def _encoded(text: str) -> tuple[int, ...]:
    """The text's byte pairs; kept, for cleaning a text takes longer than a small U-Net's layer."""
    return tuple(_bpe().encode(text))


@lru_cache(maxsize=1 << 16)
def _words(text: str) -> tuple[str, ...]:
    """The text's words after cleaning."""
    return tuple(_bpe().pat.findall(_bpe().clean_fn(text)))


class ClipTokenizer:
    """begin, the text's byte pairs, end, then padding up to `length` (Radford et al. 2021).

    Args:
        length: tokens a chunk, begin and end included. What does not fit is cut off, and the first cut warns.
        pad_token: CLIP's id that fills the rest: 49407 for Stable Diffusion, 0 for open_clip.
        words: where given, the texts' only words, each a whole token of CLIP's. The ids are then the ranks of
            theirs among those that can occur, so that a small model's embedding holds nothing unused.
        chunks: into which a longer text is divided, each with its own begin, end and padding.
    """

    def __init__(
        self, length: int, pad_token: int, words: Sequence[str] | None = None, chunks: int = 1
    ) -> None:
        if length < 2:
            raise InvalidValue(f"length is {length}, but begin and end alone are 2 tokens")
        if chunks < 1:
            raise InvalidValue(f"chunks is at least 1, got {chunks}")
        if words is not None and len(set(words)) != len(words):
            raise InvalidValue(f"words names {len(words) - len(set(words))} words twice")
        self.length, self.pad_token, self.chunks = length, pad_token, chunks
        self.words = None if words is None else tuple(words)
        self._warned = False

    @property
    def vocabulary(self) -> int:
        """How many different ids there are."""
        return VOCABULARY if self.words is None else len(self.words) + len({BEGIN, END, self.pad_token})

    @property
    def end(self) -> int:
        """The id of the end token."""
        return self._compact(END)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Token ids, chunk behind chunk. UserError for a word that is not among `words`."""
        shape, room = (len(texts), self.chunks, self.length), self.length - 2
        ids = torch.full(shape, self._compact(self.pad_token), dtype=torch.int64)
        for chunks, text in zip(ids, texts, strict=True):
            tokens = self._encode(text)
            if len(tokens) > self.chunks * room:
                self._warn(text, tokens[self.chunks * room :])
            for i, row in enumerate(chunks):
                part = [BEGIN, *tokens[i * room : (i + 1) * room], END]
                row[: len(part)] = torch.tensor([self._compact(t) for t in part])
        return ids.flatten(1)

    def _encode(self, text: str) -> list[int]:
        if self.words is None:
            return list(_encoded(text))
        found = _words(text)
        for word in found:
            if word not in self.words:
                raise UserError(
                    f"{word!r} in {text!r} is not among the {len(self.words)} words this model knows "
                    f"({', '.join(self.words)}): say it with those, or train a model that knows every word "
                    "with conditioner=transformer_text"
                )
        return [token for word in found for token in _encoded(word)]

    def _compact(self, token: int) -> int:
        return token if self.words is None else self._ranks[token]

    @cached_property
    def _ranks(self) -> dict[int, int]:
        assert self.words is not None
        ids = {BEGIN, END, self.pad_token}
        for word in self.words:
            tokens = _bpe().encode(word)
            if len(tokens) != 1:
                pieces = ", ".join(_bpe().decode([t]) for t in tokens)
                raise InvalidValue(f"words holds {word!r}, which is {len(tokens)} of CLIP's tokens: {pieces}")
            ids.update(tokens)
        ranks = {token: rank for rank, token in enumerate(sorted(ids))}
        assert len(ranks) == self.vocabulary, f"{len(ranks)} ids, but {self.vocabulary} were expected"
        return ranks

    def _warn(self, text: str, lost: list[int]) -> None:
        if not self._warned:
            cut = _bpe().decode(lost).strip()
            warnings.warn(
                f"a text was cut at {self.chunks * self.length} tokens and {cut!r} fell off its end: {text!r}"
                " (later cuts are not mentioned)",
                stacklevel=3,
            )
        self._warned = True
