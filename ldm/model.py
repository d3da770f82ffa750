"""A latent diffusion model: what sampling, evaluation and export hold in their hands."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm import keyed
from ldm.conditioning.base import Compose
from ldm.diffusion.guidance import Denoise, Guidance, guided
from ldm.diffusion.parameterization import Parameterization
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError
from ldm.networks.autoencoder import Autoencoder
from ldm.typing import Batch


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
        denoise: Denoise,
        seeds: Sequence[int],
        size: tuple[int, int],
        sampler: Sampler,
        times: Float[Tensor, " s"],
    ) -> Iterator[Float[Tensor, "b z h w"]]:
        """z_T, then every z_t of the sampler. A picture's noise depends on its own seed alone.

        Args:
            denoise: see ldm.diffusion.guidance.
            seeds: one a picture.
            size: (height, width) in pixels.
            times: falling, ending in 0; see ldm.diffusion.times.
        """
        shape, device = self.latent_shape(*size), next(self.denoiser.parameters()).device
        z_T = keyed.normal(0, seeds, "z_T", shape).to(device)

        def noise(step: int) -> Tensor:
            return keyed.normal(0, seeds, f"sampler/{step}", shape)

        yield z_T
        yield from sampler(denoise, z_T, times, self.schedule, noise)

    def denoise(
        self,
        batch: Batch,
        scale: float,
        negative: Batch | None = None,
        guidance: Guidance = guided,
        weak: "LatentDiffusion | None" = None,
    ) -> Denoise:
        """What a sampler calls, for the conditions of a batch.

        Args:
            scale: of guidance; 1 is none.
            negative: prompts to lead away from, in place of the null.
            guidance: see ldm.diffusion.guidance.
            weak: a model to lead away from, with the batch's own conditions: a smaller or an earlier one, of
                the same schedule and parameterization (autoguidance).
        """
        if negative is not None and weak is not None:
            raise UserError("a weak model takes the negative prompt's place: give one of the two")
        if weak is not None:
            null = weak.conditioner(batch)
        elif negative is not None:
            null = self.conditioner(negative)
        else:
            null = self.conditioner.null(len(next(iter(batch.values()))))  # type: ignore[arg-type]
        network = None if weak is None else weak.denoiser
        cond = self.conditioner(batch)
        return guidance(self.denoiser, self.schedule, self.parameterization, cond, null, scale, network)

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
        guidance: Guidance = guided,
        weak: "LatentDiffusion | None" = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [-1, 1]; the arguments as in `denoise` and `trajectory`.

        `progress` wraps the iteration over steps, e.g. in a bar.
        """
        denoise = self.denoise(batch, scale, negative, guidance, weak)
        z_0 = deque(progress(self.trajectory(denoise, seeds, size, sampler, times)), maxlen=1).pop()
        return self.first_stage.decode(z_0).clamp(-1, 1)
