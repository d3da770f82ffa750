"""Random numbers keyed by (seed, position, stream name).

A sample's crop, flip, dropout, noise and time depend only on its position in the stream of samples: not on
rank, worker, batch, device or restarts. All numbers are generated on the CPU in fp32.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import torch
from jaxtyping import Float
from torch import Tensor


def generator(seed: int, position: int, stream: str) -> torch.Generator:
    """Return the generator for one stream of the sample at `position`."""
    digest = blake2b(f"{seed}/{position}/{stream}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def normal(seed: int, positions: Iterable[int], stream: str, shape: Sequence[int]) -> Float[Tensor, "b ..."]:
    """Sample a N(0, I) tensor of `shape` per position."""
    return torch.stack(
        [torch.randn(tuple(shape), generator=generator(seed, int(p), stream)) for p in positions]
    )


def uniform(
    seed: int, positions: Iterable[int], stream: str, shape: Sequence[int] = ()
) -> Float[Tensor, "b ..."]:
    """Sample a U[0, 1) tensor of `shape` per position."""
    return torch.stack(
        [torch.rand(tuple(shape), generator=generator(seed, int(p), stream)) for p in positions]
    )
