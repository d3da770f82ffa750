"""Randomness keyed by (seed, position, stream name).

A sample's crop, flip, dropout, noise and time depend on where it stands in the stream and on nothing else:
not on rank, worker, batch, device or a restart. Numbers are drawn on the CPU in fp32.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import torch
from jaxtyping import Float
from torch import Tensor


def generator(seed: int, position: int, stream: str) -> torch.Generator:
    """The generator of one stream of one sample."""
    digest = blake2b(f"{seed}/{position}/{stream}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def normal(seed: int, positions: Iterable[int], stream: str, shape: Sequence[int]) -> Float[Tensor, "b ..."]:
    """One N(0, I) tensor of `shape` a sample."""
    return torch.stack(
        [torch.randn(tuple(shape), generator=generator(seed, int(p), stream)) for p in positions]
    )


def uniform(
    seed: int, positions: Iterable[int], stream: str, shape: Sequence[int] = ()
) -> Float[Tensor, "b ..."]:
    """One tensor of U[0, 1) numbers of `shape` a sample."""
    return torch.stack(
        [torch.rand(tuple(shape), generator=generator(seed, int(p), stream)) for p in positions]
    )
