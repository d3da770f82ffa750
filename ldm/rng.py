"""Random numbers keyed by (seed, position, stream name).

A sample's crop, flip, condition dropout, noise and time depend only on the seed and on its position in the
order of samples, not on rank, worker, batch, device or restarts. All numbers are generated on the CPU;
`normal` and `uniform` return fp32.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import torch
from jaxtyping import Float
from torch import Tensor


def generator(seed: int, position: int, stream: str) -> torch.Generator:
    """Return the generator of one stream of random numbers for the sample at `position`."""
    digest = blake2b(f"{seed}/{position}/{stream}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def normal(seed: int, positions: Iterable[int], stream: str, shape: Sequence[int]) -> Float[Tensor, "b ..."]:
    """Sample a tensor of `shape` from N(0, I) per position."""
    return torch.stack(
        [torch.randn(tuple(shape), generator=generator(seed, int(p), stream)) for p in positions]
    )


def uniform(
    seed: int, positions: Iterable[int], stream: str, shape: Sequence[int] = ()
) -> Float[Tensor, "b ..."]:
    """Sample a tensor of `shape` from U[0, 1) per position."""
    return torch.stack(
        [torch.rand(tuple(shape), generator=generator(seed, int(p), stream)) for p in positions]
    )
