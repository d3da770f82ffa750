"""One caption per sample, chosen at random by position where a sample has several."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor

from ldm import rng
from ldm.data.fields.metadata import read_json
from ldm.data.shards.reader import Sample
from ldm.errors import InvalidValue

MAX_CHARACTERS = 10_000
"""Longer captions are cut here, at a hundred times what any text encoder takes."""


def clean_caption(text: str) -> str:
    """Strip and cut a caption; "nan", which tables of floats write for a missing text, becomes empty."""
    text = text.strip()[:MAX_CHARACTERS]
    return "" if text.lower() == "nan" else text


@dataclass
class CaptionField:
    """Read a sample's caption; a sample without one has the empty caption.

    Args:
        weights: how often each source of captions is chosen: `txt`, or `json.KEY` for a text or a list of
            texts, which share the weight. A source that a sample lacks is never chosen.
        seed: the choice is keyed by (seed, position).
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"txt": 1.0})
    seed: int = 0
    batch_key = "caption"

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights.values()) <= 0:
            raise InvalidValue(f"data.captions={dict(self.weights)}: give weights above 0")
        for source in self.weights:
            if source != "txt" and not source.startswith("json."):
                raise InvalidValue(f"data.captions has a weight for {source!r}: use txt or json.KEY")

        self._txt_only = set(self.weights) == {"txt"}

    def __call__(self, sample: Sample, position: int) -> str:
        if self._txt_only:
            return clean_caption(_read_txt(sample))
        captions = list(self.weighted_captions(sample))
        if len(captions) < 2:
            return captions[0][0] if captions else ""
        weights = torch.tensor([weight for _, weight in captions], dtype=torch.float64).cumsum(0)
        u = torch.rand((), generator=rng.generator(self.seed, position, "caption"), dtype=torch.float64)
        return captions[int(torch.searchsorted(weights, u * weights[-1], right=True))][0]

    def weighted_captions(self, sample: Sample) -> Iterator[tuple[str, float]]:
        """Yield (caption, weight) of every caption that is not empty."""
        metadata = read_json(sample)
        for source, weight in self.weights.items():
            value = _read_txt(sample) if source == "txt" else metadata.get(source.removeprefix("json."))
            texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
            captions = [
                caption for text in texts if isinstance(text, str) and (caption := clean_caption(text))
            ]
            for caption in captions:
                yield caption, weight / len(captions)


def _read_txt(sample: Sample) -> str:
    return bytes(sample.members.get("txt", b"")).decode(errors="replace")


@dataclass
class TokenIdField:
    """Read the token ids of the caption that `caption_field` chooses: workers tokenize, not the trainer.

    Args:
        tokenize: texts to ids, such as `ldm.conditioning.tokenizer.ClipTokenizer`.
    """

    caption_field: CaptionField
    tokenize: Callable[[Sequence[str]], Int64[Tensor, "b l"]]
    batch_key = "ids"

    def __call__(self, sample: Sample, position: int) -> Int64[Tensor, " l"]:
        return self.tokenize([self.caption_field(sample, position)])[0]
