"""A latent diffusion model, as trained by stage 2 and used in sampling, evaluation and export."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm import rng
from ldm.conditioning.base import Compose, Size
from ldm.diffusion.guidance import Denoise, Guidance, NestedCFG, Prediction, classifier_free_guidance
from ldm.diffusion.parameterization import Parameterization
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.denoiser import Denoiser
from ldm.typing import Batch, Conditioning


class LatentDiffusion(nn.Module):
    """Denoiser, first stage, conditioner, schedule and parameterization (Rombach et al. 2022).

    UserError if the fields or widths of the conditions are not those that the denoiser was built for.
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
        """Set the mode of all but the frozen first stage, which stays in evaluation mode."""
        super().train(mode)
        self.first_stage.eval()
        return self

    def describe_frozen_weights(self) -> dict[str, str]:
        """Return name and hash of the conditioner's frozen encoders, which model files leave out."""
        encoders = self.conditioner.describe_frozen_weights()
        return {f"{name}.{k}": v for name, encoder in encoders.items() for k, v in encoder.items()}

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latent of an image of this size in pixels."""
        factor = self.first_stage.downsampling
        if height % factor or width % factor or height < factor or width < factor:
            raise UserError(
                f"an image of {height}x{width} cannot be encoded: give a height and width that are multiples "
                f"of the first stage's downsampling factor {factor}"
            )
        return self.first_stage.latent_channels, height // factor, width // factor

    def condition(
        self,
        batch: Batch,
        u: Float[Tensor, "b n"] | None = None,
        size: Size | None = None,
        active: Collection[str] | None = None,
    ) -> Conditioning:
        """Return the conditioning of a batch; `encode` gives the latents that some conditioners need.

        Args:
            u, active: see `Compose`.
            size: (height, width) of the latents; None takes it from the batch's maps.
        """
        return self.conditioner(batch, u, active, size, self.encode)

    @property
    def supports_guidance(self) -> bool:
        """Whether training drops any condition, as classifier-free guidance needs."""
        return len(self.conditioner.never_dropped) < len(self.conditioner)

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return the conditioning of n samples with every condition dropped; maps need the latents' size."""
        return self.conditioner.null(n, size)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b z h2 w2"]:
        """Return the normalized latent z_0 of images in [-1, 1]: the mean of their posterior."""
        self.latent_shape(*x.shape[-2:])
        return self.first_stage.normalize(self.first_stage.posterior(x).mean).float()

    @torch.no_grad()
    def decode(self, z_0: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Return the images of normalized latents, clamped to [-1, 1]."""
        return self.first_stage.decode(z_0).clamp(-1, 1)

    def trajectory(
        self,
        denoise: Denoise,
        seeds: Sequence[int],
        size: tuple[int, int],
        sampler: Sampler,
        times: Float[Tensor, " s"],
    ) -> Iterator[Float[Tensor, "b z h w"]]:
        """Yield z_T, then every z_t of the sampler. The noise of an image depends on its own seed only.

        Args:
            denoise: see ldm.diffusion.guidance.
            seeds: one per image.
            size: (height, width) in pixels.
            times: decreasing, ending in 0; see ldm.diffusion.times.
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
        *,
        scale: float,
        negative: Batch | None = None,
        guidance: Guidance = classifier_free_guidance,
        weak: "LatentDiffusion | None" = None,
        size: Size | None = None,
        active: Collection[str] | None = None,
    ) -> Denoise:
        """Return the function that a sampler calls, for the conditions of a batch.

        The null condition that guidance extrapolates away from keeps the conditions that training never
        drops and drops all others.

        Args:
            scale: of guidance; 1 disables it.
            negative: a batch of negative conditions, which replace the null conditions of the same names.
            guidance: see ldm.diffusion.guidance.
            weak: a smaller or less trained model with the same schedule and parameterization; guidance
                extrapolates away from its prediction for the same conditions (autoguidance).
            size: (height, width) of the latents; None takes it from the batch's maps.
            active: names of the conditions to use, besides those that training never drops; None uses all.
        """
        if negative is not None and weak is not None:
            raise UserError(
                "negative or negative_aesthetic cannot be combined with weak: give one of the two"
            )
        cond = self.condition(batch, size=size, active=self.active_names(active))
        if weak is None:
            null = self.null_condition(batch, scale, negative, size)
        else:
            null = weak.condition(batch, size=size, active=weak.active_names(active))
        if isinstance(guidance, NestedCFG):
            subsets = [self.active_names(names) for names in guidance.subsets]
            guidance = guidance.with_conditions(
                [self.condition(batch, size=size, active=names) for names in subsets]
            )
        return guidance(self.prediction(cond, null, None if weak is None else weak.denoiser), scale)

    def prediction(
        self, cond: Conditioning, null: Conditioning | None = None, weak: Denoiser | None = None
    ) -> Prediction:
        """Return the denoiser with these conditions, from which a guidance builds `denoise`."""
        return Prediction(self.denoiser, self.schedule, self.parameterization, cond, null, weak)

    def active_names(self, names: Collection[str] | None) -> Collection[str] | None:
        """Return the names and those of the conditions that training never drops; None (all) stays None."""
        return None if names is None else {*names, *self.conditioner.never_dropped}

    def null_condition(
        self, batch: Batch, scale: float, negative: Batch | None, size: Size | None
    ) -> Conditioning:
        """Return the condition that guidance extrapolates away from: `negative`, with all others dropped.

        Conditions that training never drops stay as in the batch.
        """
        if negative is None:
            if scale != 1 and not self.supports_guidance:
                raise UserError(
                    f"scale={scale:g} needs classifier-free guidance, but this model was trained without "
                    "condition dropout: use scale=1"
                )
            return self.condition(batch, size=size, active=self.active_names(()))
        if unused := sorted(negative.keys() - self.conditioner.batch_keys):
            raise UserError(
                f"no condition of this model uses {', '.join(unused)}: remove the "
                f"negative {', '.join(unused)}"
            )
        active = self.active_names(self.conditioner.conditions_in(negative))
        return self.condition({**batch, **negative}, size=size, active=active)

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        seeds: Sequence[int],
        size: tuple[int, int],
        *,
        sampler: Sampler,
        times: Float[Tensor, " s"],
        scale: float,
        negative: Batch | None = None,
        guidance: Guidance = classifier_free_guidance,
        weak: "LatentDiffusion | None" = None,
        active: Collection[str] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Sample images in [-1, 1]; the arguments are those of `denoise` and `trajectory`."""
        denoise = self.denoise(
            batch,
            scale=scale,
            negative=negative,
            guidance=guidance,
            weak=weak,
            size=self.latent_shape(*size)[1:],
            active=active,
        )
        return self.decode(deque(self.trajectory(denoise, seeds, size, sampler, times), maxlen=1).pop())

    @torch.no_grad()
    def _check_widths(self) -> None:
        """Raise UserError if the conditions' channels are not those that the denoiser was built for."""
        size = 16 * self.denoiser.downsampling  # any multiple of the denoiser's factor
        null, latent = self.conditioner.null(1, (size, size)), self.first_stage.latent_channels
        concat = 0 if null.concat is None else null.concat.shape[1]
        if latent + concat != self.denoiser.in_channels:
            raise UserError(
                f"{self.denoiser.title} has {self.denoiser.in_channels} input channels, but the latent has "
                f"{latent} and the concatenated conditions {concat}: set "
                f"denoiser.in_channels={latent + concat}, or choose another conditioner=..."
            )
        for name, value, expected in (
            ("context", null.context, self.denoiser.context_channels),
            ("vector", null.vector, self.denoiser.vector_channels),
        ):
            channels = None if value is None else value.shape[-1]
            if channels != expected:
                needed = "null" if channels is None else channels
                raise UserError(
                    f"{self.denoiser.title} takes {_describe(name, expected)}, but the conditions "
                    f"give {_describe(name, channels)}: set denoiser.{name}_channels={needed}, or choose "
                    "another conditioner=..."
                )


def _describe(name: str, channels: int | None) -> str:
    return f"no {name}" if channels is None else f"a {name} of {channels} channels"
