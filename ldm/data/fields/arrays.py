"""Fields stored as NumPy arrays: latent moments, cached text embeddings."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import prod

import numpy as np
import torch
from jaxtyping import Float16
from torch import Tensor

from ldm import rng
from ldm.data.shards.reader import BadSample, Sample

warnings.filterwarnings("ignore", message="The given buffer is not writable")  # collate copies it

FP16_EXPONENT = np.uint16(0x7C00)
"""The bits of fp16's exponent, all of which are set in infinite values and NaN alone."""


@dataclass
class ArrayField:
    """Read the fp16 array in the member with extension `kind` as a read-only view of the file's bytes.

    A value that is infinite or NaN makes a bad sample.
    """

    kind: str
    batch_key: str
    shape: Sequence[int]

    def __post_init__(self) -> None:
        self._layout, self._num_bytes = ("<f2", tuple(self.shape)), 2 * prod(self.shape)

    def __call__(self, sample: Sample, position: int) -> Float16[Tensor, "..."]:
        data = sample.read(self.kind)
        start = 10 + int.from_bytes(data[8:10], "little")
        if len(data) != start + self._num_bytes or _parse_npy_header(data[:start]) != self._layout:
            raise BadSample(
                f"the {self.kind} of sample {sample.key} in {sample.shard} is not fp16 of shape "
                f"{tuple(self.shape)}: encode the shard again"
            )
        bits = np.frombuffer(data, np.uint16, offset=start)
        if ((bits & FP16_EXPONENT) == FP16_EXPONENT).any():  # several times faster than isfinite
            raise BadSample(
                f"the {self.kind} of sample {sample.key} in {sample.shard} has values that are infinite or "
                "NaN: encode the shard again, with an encoder whose output fits fp16"
            )
        return torch.frombuffer(data, dtype=torch.float16, offset=start).view(self._layout[1])


@dataclass
class VariantField:
    """Read one of the v encodings of an image, keyed by (seed, position): (v, ...) becomes (...)."""

    array_field: ArrayField
    seed: int

    @property
    def batch_key(self) -> str:
        """The batch key of the array."""
        return self.array_field.batch_key

    def __call__(self, sample: Sample, position: int) -> Float16[Tensor, "..."]:
        variant = torch.randint(
            self.array_field.shape[0], (), generator=rng.generator(self.seed, position, "variant")
        )
        return self.array_field(sample, position)[int(variant)]


def to_npy(array: np.ndarray) -> bytes:
    """Return the bytes of a `.npy` file that holds the array."""
    file = BytesIO()
    np.save(file, np.ascontiguousarray(array))
    return file.getvalue()


@lru_cache
def _parse_npy_header(header: bytes) -> tuple[str, tuple[int, ...]] | None:
    """Return dtype and shape; None if the header is invalid or the array is in Fortran order.

    Cached: parsing takes ten times as long as reading the file, and all files of a dataset have one header.
    """
    try:
        file = BytesIO(header)
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, AssertionError):
        return None
    return None if fortran else (dtype.str, shape)
