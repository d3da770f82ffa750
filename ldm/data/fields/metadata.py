"""What a sample's json and cls members know of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ldm.data.shards.reader import BadSample, Sample


def read_json(sample: Sample) -> Mapping[str, object]:
    """The json member; empty where there is none, or none that can be read."""
    try:
        known = json.loads(sample.members.get("json", b"{}"))
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


@dataclass
class ClassField:
    """Reads the number of the sample's class from `cls`, 0..num_classes-1."""

    num_classes: int
    batch_key = "label"

    def __call__(self, sample: Sample, position: int) -> Int64[Tensor, ""]:
        text = sample.read("cls").decode(errors="replace").strip()
        if not text.isdecimal() or int(text) >= self.num_classes:
            raise BadSample(
                f"the class of sample {sample.key} in {sample.shard} is {text[:20]!r}: it takes a number "
                f"from 0 to {self.num_classes - 1}"
            )
        return torch.tensor(int(text))


@dataclass
class MetadataField:
    """Reads a number of the json, as an aesthetic score.

    Args:
        name: the json's key.
        missing: what stands for it where the json has none; None makes that a bad sample.
    """

    name: str = "aesthetic"
    missing: float | None = None
    batch_key: str = "aesthetic"

    def __call__(self, sample: Sample, position: int) -> Float[Tensor, "1"]:
        value = read_json(sample).get(self.name, self.missing)
        if not isinstance(value, int | float):
            raise BadSample(f"the json of sample {sample.key} in {sample.shard} has no number {self.name!r}")
        return torch.tensor([float(value)])
