"""What a task samples: every image by title, seed and name, and the trajectories of some of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Postprocess: TypeAlias = Callable[[Tensor], Tensor]
"""Function from decoded images in [-1, 1], b c h w, to the images that are saved."""


@dataclass(frozen=True)
class SamplingPlan:
    """The images of a command; nothing is sampled before `trajectory` is iterated.

    Args:
        names: file names without the suffix.
        steps: of the sampler.
        trajectory: yields z_T and every z_t of the images of a slice.
    """

    titles_and_seeds: Sequence[tuple[str, int]]
    names: Sequence[str]
    steps: int
    trajectory: Callable[[slice], Iterator[Tensor]]
    postprocess: Postprocess
