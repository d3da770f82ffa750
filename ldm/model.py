"""A latent diffusion model: what sampling, evaluation and export hold in their hands."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm import keyed
from ldm.conditioning.base import Compose
from ldm.diffusion.guidance import Denoise, guided
from ldm.diffusion.parameterization import Parameterization
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError
from ldm.networks.autoencoder import Autoencoder
from ldm.typing import Batch, Conditioning


@runtime_checkable
class Sampler(Protocol):
    """A generator of z_t; see ldm.diffusion.samplers."""

    def __call__(
        self,
        denoise: Denoise,
        z_T: Float[Tensor, "b z h w"],
        times: Float[Tensor, " s"],
        schedule: Schedule,
        noise: Callable[[int], Tensor],
    ) -> Iterator[Float[Tensor, "b z h w"]]: ...


class LatentDiffusion(nn.Module):
    """Denoiser, first stage, conditioner, schedule and parameterization (Rombach et al. 2022)."""

    def __init__(
        self,
        denoiser: nn.Module,
        first_stage: Autoencoder,
        conditioner: Compose,
        schedule: Schedule,
        parameterization: Parameterization,
    ) -> None:
        super().__init__()
        parameterization.check(schedule)
        self.denoiser = denoiser
        self.first_stage = first_stage.requires_grad_(False).eval()
        self.conditioner = conditioner
        self.schedule = schedule
        self.parameterization = parameterization

    def train(self, mode: bool = True) -> "LatentDiffusion":
        """The first stage is frozen: it stays in evaluation mode."""
        super().train(mode)
        self.first_stage.eval()
        return self

    def identity(self) -> dict[str, str]:
        """Name and hash of the conditioner's frozen encoders, which files leave out."""
        named = self.conditioner.identity()
        return {f"{name}.{k}": v for name, entry in named.items() for k, v in entry.items()}

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of pictures of a size in pixels."""
        factor = self.first_stage.downsampling
        if height % factor or width % factor or height < factor or width < factor:
            raise UserError(f"the size {height}x{width} does not divide by the first stage's factor {factor}")
        return self.first_stage.latent_channels, height // factor, width // factor

    def trajectory(
        self,
        cond: Conditioning,
        null: Conditioning,
        seeds: Sequence[int],
        size: tuple[int, int],
        sampler: Sampler,
        times: Float[Tensor, " s"],
        scale: float,
    ) -> Iterator[Float[Tensor, "b z h w"]]:
        """z_T, then every z_t of the sampler. A picture's noise depends on its own seed alone.

        Args:
            cond, null: each picture's condition, and the null or negative prompt that guidance starts from.
            seeds: one a picture.
            size: (height, width) in pixels.
            times: falling, ending in 0; see ldm.diffusion.times.
            scale: of classifier-free guidance; 1 is none.
        """
        shape, device = self.latent_shape(*size), next(self.denoiser.parameters()).device
        z_T = keyed.normal(0, seeds, "z_T", shape).to(device)
        denoise = guided(self.denoiser, self.schedule, self.parameterization, cond, null, scale)

        def noise(step: int) -> Tensor:
            return keyed.normal(0, seeds, f"sampler/{step}", shape)

        yield z_T
        yield from sampler(denoise, z_T, times, self.schedule, noise)

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        seeds: Sequence[int],
        size: tuple[int, int],
        sampler: Sampler,
        times: Float[Tensor, " s"],
        scale: float,
        negative: Batch | None = None,
        progress: Callable[[Iterator[Tensor]], Iterator[Tensor]] = iter,
    ) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [-1, 1] for the conditions of a batch; the other arguments as in `trajectory`.

        `progress` wraps the iteration over steps, e.g. in a bar.
        """
        cond = self.conditioner(batch)
        null = self.conditioner.null(len(seeds)) if negative is None else self.conditioner(negative)
        z_0 = deque(progress(self.trajectory(cond, null, seeds, size, sampler, times, scale)), maxlen=1).pop()
        return self.first_stage.decode(z_0).clamp(-1, 1)
