"""One caption a sample, drawn by its position from those it has."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor

from ldm import rng
from ldm.data.fields.metadata import read_json
from ldm.data.shards.reader import Sample
from ldm.errors import InvalidValue

LONGEST = 10_000
"""Characters of a caption that are kept: a hundred times what any text encoder takes."""


def clean(text: str) -> str:
    """A caption without what is none: "nan" is how a missing one is written by tables of floats."""
    text = text.strip()[:LONGEST]
    return "" if text.lower() == "nan" else text


@dataclass
class CaptionField:
    """Reads a sample's caption; a sample without one has the empty caption.

    Args:
        weights: how often each caption is drawn, by where it stands: `txt`, or `json.KEY` for a text or a
            list of texts, which share the weight. What a sample lacks is not drawn.
        seed: of the draw, which is keyed by (seed, position).
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"txt": 1.0})
    seed: int = 0
    batch_key = "caption"

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights.values()) <= 0:
            raise InvalidValue(f"captions need weights above 0, not {dict(self.weights)}")
        for place in self.weights:
            if place != "txt" and not place.startswith("json."):
                raise InvalidValue(f"captions stand in txt or json.KEY, not in {place}")

        self._alone = set(self.weights) == {"txt"}

    def __call__(self, sample: Sample, position: int) -> str:
        if self._alone:
            return clean(_text(sample))
        found = list(self.all(sample))
        if len(found) < 2:
            return found[0][0] if found else ""
        weights = torch.tensor([weight for _, weight in found], dtype=torch.float64).cumsum(0)
        u = torch.rand((), generator=rng.generator(self.seed, position, "caption"), dtype=torch.float64)
        return found[int(torch.searchsorted(weights, u * weights[-1], right=True))][0]

    def all(self, sample: Sample) -> Iterator[tuple[str, float]]:
        """(caption, weight) of every caption that is not empty."""
        known = read_json(sample)
        for place, weight in self.weights.items():
            texts = _text(sample) if place == "txt" else known.get(place.removeprefix("json."))
            listed = [texts] if isinstance(texts, str) else texts if isinstance(texts, list) else []
            captions = [text for one in listed if isinstance(one, str) and (text := clean(one))]
            for text in captions:
                yield text, weight / len(captions)


def _text(sample: Sample) -> str:
    return bytes(sample.members.get("txt", b"")).decode(errors="replace")


@dataclass
class TokenIdField:
    """Reads the token ids of the caption that `captions` draws, so that workers tokenize and not the trainer.

    Args:
        tokenize: texts to ids, as `ldm.conditioning.tokenizer.ClipTokenizer`.
    """

    captions: CaptionField
    tokenize: Callable[[Sequence[str]], Int64[Tensor, "b l"]]
    batch_key = "ids"

    def __call__(self, sample: Sample, position: int) -> Int64[Tensor, " l"]:
        return self.tokenize([self.captions(sample, position)])[0]
