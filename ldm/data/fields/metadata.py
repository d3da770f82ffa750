"""Fields read from a sample's `.json` and `.cls` members."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ldm.data.shards.metadata import parse_json, read_number
from ldm.data.shards.reader import BadSample, Sample
from ldm.errors import InvalidValue
from ldm.typing import Channels, FiniteFloat

MAX_DIGITS = 18
"""Longer class indexes do not fit int64."""


def read_json(sample: Sample) -> Mapping[str, object]:
    """Return the sample's json; empty where it is missing or is not a JSON object."""
    return parse_json(sample.members.get("json", b"{}"))


@dataclass
class ClassField:
    """Read the sample's class index from `cls`, 0..num_classes-1."""

    num_classes: Channels
    batch_key = "label"

    def __call__(self, sample: Sample, position: int) -> Int64[Tensor, ""]:
        text = sample.read("cls").decode(errors="replace").strip()
        if not text.isdecimal() or len(text) > MAX_DIGITS or int(text) >= self.num_classes:
            raise BadSample(
                f"the class of sample {sample.key} in {sample.shard} is {text[:20]!r}, not a whole number "
                f"from 0 to {self.num_classes - 1}: fix its .cls, or set num_classes"
            )
        return torch.tensor(int(text))


@dataclass
class MetadataField:
    """Read a finite number from the json, such as an aesthetic score; text is read as a number.

    Args:
        name: the json's key.
        missing: the value of samples whose json has none, or null; None makes them bad samples. A value that
            is no number, such as NaN or true, always makes its sample bad.
    """

    name: str = "aesthetic"
    missing: FiniteFloat | None = None
    batch_key: str = "aesthetic"

    def __post_init__(self) -> None:
        if self.missing is not None and not math.isfinite(self.missing):
            raise InvalidValue(f"missing must be a finite number or null, not {self.missing}")

    def __call__(self, sample: Sample, position: int) -> Float[Tensor, "1"]:
        metadata = read_json(sample)
        is_missing = metadata.get(self.name) is None
        number = self.missing if is_missing else read_number(metadata, self.name)
        if number is None:
            problem = "has no" if is_missing else f"has {metadata[self.name]!r:.40} as its"
            advice = "add it, or set missing=NUMBER" if is_missing else "make it a finite number, or null"
            raise BadSample(
                f"the json of sample {sample.key} in {sample.shard} {problem} {self.name!r}: {advice}"
            )
        return torch.tensor([number], dtype=torch.float32)
