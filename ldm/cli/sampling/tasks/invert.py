"""A image's own noise, drawn again under other prompts."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from ldm.cli.config.validate import whole
from ldm.cli.sampling.tasks.base import SampleSpec, SamplingContext, Txt2Img, channels, encode_image
from ldm.cli.sampling.tasks.inputs import read_image
from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.tasks.invert import invert
from ldm.errors import UserError


class Invert(Txt2Img):
    """A image's own noise by DDIM, drawn again: the image itself from `prompt`, edited from another one.

    One image a prompt, since nothing is left to the seed.

    Args:
        image: the image's file.
        prompt: what it shows, for the way to its noise, which is not guided; None for a model that reads no
            captions.
        refinements: evaluations a step that bring the way back nearer to the image.
    """

    def __init__(self, image: str, prompt: str | None, refinements: int) -> None:
        whole("task.refinements", refinements, 0)
        self.image, self.prompt, self.refinements = image, prompt, refinements

    def wanted(self, prompts: Sequence[str], cfg: DictConfig) -> list[SampleSpec]:
        return [SampleSpec(prompt, cfg.seed) for prompt in prompts]

    @torch.no_grad()
    def changed(
        self, inputs: SamplingContext, sampler: Sampler, times: Tensor
    ) -> tuple[Sampler, Tensor, int]:
        model, size = inputs.model, inputs.size
        if self.prompt is None and inputs.needs_prompts:
            raise UserError(
                "task.prompt is needed (a caption of what task.image shows): give it as task.prompt=..."
            )
        z_0 = encode_image(model, read_image(self.image, size, channels(model)))
        batch = inputs.batch([inputs.one(SampleSpec(self.prompt or "", inputs.cfg.seed))])
        told = model.conditioner.conditions_in(batch)
        denoise = model.denoise(batch, scale=1.0, size=model.latent_shape(*size)[1:], active=told)
        *_, z_T = invert(denoise, z_0, times, model.schedule, self.refinements)
        return partial(_from_noise, sampler=sampler, own=z_T), times, len(times) - 1


def _from_noise(
    denoise: Denoise,
    z_T: Float[Tensor, "b z h w"],
    times: Float[Tensor, " s"],
    schedule: Schedule,
    noise: Callable[[int], Tensor],
    sampler: Sampler,
    own: Float[Tensor, "1 z h w"],
) -> Iterator[Float[Tensor, "b z h w"]]:
    """The sampler from a given noise in the place of z_T."""
    return sampler(denoise, own.expand_as(z_T), times, schedule, noise)
