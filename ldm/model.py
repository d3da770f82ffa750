"""A latent diffusion model: what sampling, evaluation and export hold in their hands."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm import rng
from ldm.conditioning.base import Compose, Size
from ldm.diffusion.guidance import Denoise, Guidance, Nested, guided
from ldm.diffusion.parameterization import Parameterization
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.denoiser import Denoiser
from ldm.typing import Batch, Conditioning


class LatentDiffusion(nn.Module):
    """Denoiser, first stage, conditioner, schedule and parameterization (Rombach et al. 2022).

    UserError where the conditions fill other slots, or other widths of them, than the denoiser takes.
    """

    def __init__(
        self,
        denoiser: Denoiser,
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
        self._check_widths()

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
        """(channels, height, width) of the latents of images of a size in pixels."""
        factor = self.first_stage.downsampling
        if height % factor or width % factor or height < factor or width < factor:
            raise UserError(f"the size {height}x{width} does not divide by the first stage's factor {factor}")
        return self.first_stage.latent_channels, height // factor, width // factor

    def condition(
        self,
        batch: Batch,
        u: Float[Tensor, "b n"] | None = None,
        size: Size | None = None,
        active: Collection[str] | None = None,
    ) -> Conditioning:
        """The conditions of a batch, its images through the first stage where one wants a latent.

        Args:
            u, keep: see `Compose`.
            size: of the latents, (height, width); None is as the batch's maps have it.
        """
        return self.conditioner(batch, u, active, size, self.encode)

    @property
    def supports_guidance(self) -> bool:
        """Whether training drops a condition, so that guidance can lead away from its absence."""
        return len(self.conditioner.never_dropped) < len(self.conditioner)

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """n times no condition at all; maps need to know the latent's size."""
        return self.conditioner.null(n, size)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b z h2 w2"]:
        """The latent of images in [-1, 1]: the mean of its posterior, normalised as z_0."""
        self.latent_shape(*x.shape[-2:])
        return self.first_stage.normalize(self.first_stage.posterior(x).mean).float()

    def trajectory(
        self,
        denoise: Denoise,
        seeds: Sequence[int],
        size: tuple[int, int],
        sampler: Sampler,
        times: Float[Tensor, " s"],
    ) -> Iterator[Float[Tensor, "b z h w"]]:
        """z_T, then every z_t of the sampler. A image's noise depends on its own seed alone.

        Args:
            denoise: see ldm.diffusion.guidance.
            seeds: one a image.
            size: (height, width) in pixels.
            times: falling, ending in 0; see ldm.diffusion.times.
        """
        shape, device = self.latent_shape(*size), next(self.denoiser.parameters()).device
        z_T = rng.normal(0, seeds, "z_T", shape).to(device)

        def noise(step: int) -> Tensor:
            return rng.normal(0, seeds, f"sampler/{step}", shape)

        yield z_T
        yield from sampler(denoise, z_T, times, self.schedule, noise)

    def denoise(
        self,
        batch: Batch,
        scale: float,
        negative: Batch | None = None,
        guidance: Guidance = guided,
        weak: "LatentDiffusion | None" = None,
        size: Size | None = None,
        active: Collection[str] | None = None,
    ) -> Denoise:
        """What a sampler calls, for the conditions of a batch.

        Guidance leads away from the conditions that training never drops, all others null: those the network
        knows the absence of.

        Args:
            scale: of guidance; 1 is none.
            negative: prompts to lead away from, in place of their null.
            guidance: see ldm.diffusion.guidance.
            weak: a model to lead away from, with the batch's own conditions: a smaller or an earlier one, of
                the same schedule and parameterization (autoguidance).
            size: of the latents, (height, width); None is as the batch's maps have it.
            keep: names of the conditions to keep beside those that training never drops; None keeps all.
        """
        if negative is not None and weak is not None:
            raise UserError("a weak model takes the negative prompt's place: give one of the two")
        cond = self.condition(batch, size=size, active=self.kept(active))
        if weak is None:
            null = self.without(batch, scale, negative, size)
        else:
            null = weak.condition(batch, size=size, active=weak.kept(active))
        if isinstance(guidance, Nested):
            subsets = [self.kept(names) for names in guidance.subsets]
            guidance = guidance.among([self.condition(batch, size=size, active=names) for names in subsets])
        network = None if weak is None else weak.denoiser
        return guidance(self.denoiser, self.schedule, self.parameterization, cond, null, scale, network)

    def kept(self, names: Collection[str] | None) -> Collection[str] | None:
        """The names, and what training never drops."""
        return None if names is None else {*names, *self.conditioner.never_dropped}

    def without(self, batch: Batch, scale: float, negative: Batch | None, size: Size | None) -> Conditioning:
        """What guidance leads away from: the negative's conditions, and of the others those never dropped."""
        if negative is None:
            if scale != 1 and not self.supports_guidance:
                raise UserError(
                    f"guidance of scale {scale} leads away from dropped conditions, and this model was "
                    "trained with none dropped: give scale=1"
                )
            return self.condition(batch, size=size, active=self.kept(()))
        if unread := sorted(negative.keys() - self.conditioner.keys):
            raise UserError(
                f"no condition of this model reads {', '.join(unread)}, to lead away from one: leave the "
                "negative out"
            )
        told = self.kept(self.conditioner.conditions_in(negative))
        return self.condition({**batch, **negative}, size=size, active=told)

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
        active: Collection[str] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Images in [-1, 1]; the arguments as in `denoise` and `trajectory`.

        `progress` wraps the iteration over steps, e.g. in a bar.
        """
        latent = self.latent_shape(*size)[1:]
        denoise = self.denoise(batch, scale, negative, guidance, weak, latent, active)
        z_0 = deque(progress(self.trajectory(denoise, seeds, size, sampler, times)), maxlen=1).pop()
        return self.first_stage.decode(z_0).clamp(-1, 1)

    @torch.no_grad()
    def _check_widths(self) -> None:
        side = 16 * self.denoiser.downsampling  # any will do that patches divide
        null, latent = self.conditioner.null(1, (side, side)), self.first_stage.latent_channels
        concat = 0 if null.concat is None else null.concat.shape[1]
        if latent + concat != self.denoiser.in_channels:
            raise UserError(
                f"{self.denoiser.title} takes {self.denoiser.in_channels} channels, and the latent has "
                f"{latent} and the conditions {concat} beside it: give "
                f"denoiser.in_channels={latent + concat}, or another conditioner=..."
            )
        for name, value, taken in (
            ("context", null.context, self.denoiser.context_channels),
            ("vector", null.vector, self.denoiser.vector_channels),
        ):
            filled = None if value is None else value.shape[-1]
            if filled != taken:
                wanted = "null" if filled is None else filled
                raise UserError(
                    f"{self.denoiser.title} takes a {name} of {_channels(taken)}, and the conditions fill "
                    f"{_channels(filled)}: give denoiser.{name}_channels={wanted}, or another conditioner=..."
                )


def _channels(n: int | None) -> str:
    return "no channels" if n is None else f"{n} channels"
