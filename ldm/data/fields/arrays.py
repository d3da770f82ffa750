"""Members that are NumPy arrays: latents' moments, cached text states."""

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

warnings.filterwarnings("ignore", message="The given buffer is not writable")  # a batch copies it


@dataclass
class ArrayField:
    """Reads the member `kind`, fp16 of `shape`, into `batch_key`; it is the file's bytes, to be read alone."""

    kind: str
    batch_key: str
    shape: Sequence[int]

    def __post_init__(self) -> None:
        self._layout, self._bytes = ("<f2", tuple(self.shape)), 2 * prod(self.shape)

    def __call__(self, sample: Sample, position: int) -> Float16[Tensor, "..."]:
        data = sample.read(self.kind)
        start = 10 + int.from_bytes(data[8:10], "little")
        if len(data) != start + self._bytes or _layout(data[:start]) != self._layout:
            raise BadSample(
                f"the {self.kind} of sample {sample.key} in {sample.shard} is not fp16 of shape "
                f"{tuple(self.shape)}: encode the shard again"
            )
        return torch.frombuffer(data, dtype=torch.float16, offset=start).view(self._layout[1])


@dataclass
class VariantField:
    """Reads one of several encodings of a image, keyed by (seed, position): (v, ...) becomes (...)."""

    array: ArrayField
    seed: int

    @property
    def batch_key(self) -> str:
        """The array's."""
        return self.array.batch_key

    def __call__(self, sample: Sample, position: int) -> Float16[Tensor, "..."]:
        number = torch.randint(
            self.array.shape[0], (), generator=rng.generator(self.seed, position, "variant")
        )
        return self.array(sample, position)[int(number)]


def npy(array: np.ndarray) -> bytes:
    """The bytes of a `.npy` file."""
    file = BytesIO()
    np.save(file, np.ascontiguousarray(array))
    return file.getvalue()


@lru_cache
def _layout(header: bytes) -> tuple[str, tuple[int, ...]] | None:
    # parsing the header costs ten times the read, and there is only one header in a data set
    try:
        file = BytesIO(header)
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, AssertionError):
        return None
    return None if fortran else (dtype.str, shape)
