"""Fields read from a sample's `.json` and `.cls` members."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ldm.data.shards.reader import BadSample, Sample


def read_json(sample: Sample) -> Mapping[str, object]:
    """Return the sample's json; empty where it is missing or is not a JSON object."""
    try:
        metadata = json.loads(sample.members.get("json", b"{}"))
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


@dataclass
class ClassField:
    """Read the sample's class index from `cls`, 0..num_classes-1."""

    num_classes: int
    batch_key = "label"

    def __call__(self, sample: Sample, position: int) -> Int64[Tensor, ""]:
        text = sample.read("cls").decode(errors="replace").strip()
        if not text.isdecimal() or int(text) >= self.num_classes:
            raise BadSample(
                f"the class of sample {sample.key} in {sample.shard} is {text[:20]!r}, not a whole number "
                f"from 0 to {self.num_classes - 1}: fix its .cls, or set num_classes"
            )
        return torch.tensor(int(text))


@dataclass
class MetadataField:
    """Read a number from the json, such as an aesthetic score.

    Args:
        name: the json's key.
        missing: the value of samples whose json has none; None makes them bad samples.
    """

    name: str = "aesthetic"
    missing: float | None = None
    batch_key: str = "aesthetic"

    def __call__(self, sample: Sample, position: int) -> Float[Tensor, "1"]:
        value = read_json(sample).get(self.name, self.missing)
        if not isinstance(value, int | float):
            raise BadSample(
                f"the json of sample {sample.key} in {sample.shard} has no number {self.name!r}: add it, or "
                "set missing=NUMBER"
            )
        return torch.tensor([float(value)])
