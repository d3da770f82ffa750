"""Samplers are generators: `sampler(denoise, z_T, times, schedule, noise)` yields z at times[1], times[2]...

`times` falls, may hold any real numbers, and ends in 0 for a clean sample; the step into 0 returns the
predicted z_0 itself. Random noise comes from `noise(i)`, called at most once in step i, so that the caller
decides how the noise of an image is seeded. One file each: `from ldm.diffusion.samplers.ddim import ddim`.

A step over an infinite distance in lam, from pure noise (alpha = 0) or into t = 0, is of first order in every
sampler: alpha_s z_0 + sigma_s eps, which needs no limit.

| sampler            | order | `denoise` per step    | noise | source                          |
|--------------------|-------|-----------------------|-------|---------------------------------|
| `ddim`, `euler`    | 1     | 1                     | eta>0 | Song et al. 2021                |
| `ddpm`             | 1     | 1                     | yes   | Ho et al. 2020                  |
| `euler_ancestral`  | 1     | 1                     | yes   | Karras et al. 2022, k-diffusion |
| `plms`             | -     | 1, the first 2        | no    | Liu et al. 2022                 |
| `heun`             | 2     | 2, the last 1         | no    | Karras et al. 2022              |
| `edm`              | 2     | 2, the last 1         | yes   | Karras et al. 2022              |
| `dpm_solver_2`     | 2     | 2, the last 1         | no    | Lu et al. 2022a                 |
| `dpm_solver_3`     | 3     | 3, the last 1         | no    | Lu et al. 2022a                 |
| `dpmpp_2s`         | 2     | 2, the last 1         | no    | Lu et al. 2022b                 |
| `dpmpp_2m`         | 2     | 1                     | eta>0 | Lu et al. 2022b                 |
| `dpmpp_2m_sde`     | -     | 1                     | yes   | Lu et al. 2022b                 |
| `dpmpp_3m`         | 3     | 1                     | no    | Lu et al. 2022b                 |
| `unipc`            | 2, 3  | 1                     | no    | Zhao et al. 2023                |

The measured orders are in docs/guide/samplers.md.
"""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.schedule import Schedule


@runtime_checkable
class Sampler(Protocol):
    """A generator of z_t at times[1], times[2]..."""

    def __call__(
        self,
        denoise: Denoise,
        z_T: Float[Tensor, "b z h w"],
        times: Float[Tensor, " s"],
        schedule: Schedule,
        noise: Callable[[int], Tensor],
    ) -> Iterator[Float[Tensor, "b z h w"]]: ...
