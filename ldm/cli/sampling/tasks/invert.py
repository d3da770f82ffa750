"""Inversion: the noise of an image, sampled again under other prompts."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.cli.sampling.options import SamplingOptions
from ldm.cli.sampling.tasks.base import SampleSpec, SamplingContext, Txt2Img, encode_image, image_channels
from ldm.cli.sampling.tasks.inputs import read_image
from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.tasks.invert import invert
from ldm.errors import UserError
from ldm.typing import NonNegativeInt


class Invert(Txt2Img):
    """Find an image's noise by DDIM inversion and sample from it, under its own or another prompt.

    One image per prompt, since the noise does not depend on the seed.

    Args:
        image: path of the image.
        prompt: a caption of the image, for the inversion, which is not guided; None for a model without
            prompts.
        refinements: further evaluations per step that make the reconstruction more exact.
    """

    def __init__(self, image: str, prompt: str | None, refinements: NonNegativeInt) -> None:
        self.image, self.prompt, self.refinements = image, prompt, refinements

    def specs(self, prompts: Sequence[str], options: SamplingOptions) -> list[SampleSpec]:
        return [SampleSpec(prompt, options.seed) for prompt in prompts]

    @torch.no_grad()
    def prepare_sampler(
        self, context: SamplingContext, sampler: Sampler, times: Tensor
    ) -> tuple[Sampler, Tensor, int]:
        model, size = context.model, context.size
        if self.prompt is None and context.needs_prompts:
            raise UserError("task.prompt is required: give a caption of task.image as task.prompt=...")
        z_0 = encode_image(model, read_image(self.image, size, image_channels(model)))
        spec = context.expand_to_one(SampleSpec(self.prompt or "", context.options.seed))
        batch = context.conditions([spec])
        active = model.conditioner.conditions_in(batch)
        denoise = model.denoise(batch, scale=1.0, size=model.latent_shape(*size)[1:], active=active)
        *_, z_T = invert(denoise, z_0, times, model.schedule, self.refinements)
        return partial(_from_noise, sampler=sampler, inverted=z_T), times, len(times) - 1


def _from_noise(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
    sampler: Sampler,
    inverted: Float[Tensor, "1 z h w"],
) -> Iterator[Float[Tensor, "b z h w"]]:
    """Run the sampler from the inverted noise instead of z_T."""
    return sampler(denoise, inverted.expand_as(z_T), times, schedule, noise)
