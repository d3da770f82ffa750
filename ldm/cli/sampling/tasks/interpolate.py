"""Images on the way from one prompt and noise to another."""

from collections.abc import Collection, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import rng
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling import files
from ldm.cli.sampling.tasks.base import SampleSpec, SamplingContext, Txt2Img
from ldm.diffusion.guidance import Denoise, Guidance, Nested
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.tasks.interpolate import interpolate_conditions, slerp_noise
from ldm.errors import UserError
from ldm.typing import Batch, Conditioning


class Interpolate(Txt2Img):
    """n images on the way from one prompt and noise to another; with one prompt, between two noises.

    Args:
        other_seed: of the noise at the end; None is the seed after the first noise's.
    """

    def __init__(self, other_seed: int | None) -> None:
        self.other_seed = other_seed

    def __call__(
        self, inputs: SamplingContext, prompts: Sequence[str], sampler: Sampler, times: Float[Tensor, " s"]
    ) -> files.Samples:
        self.check(inputs, prompts)
        model, cfg, size = inputs.model, inputs.cfg, inputs.size
        ends = [inputs.one(SampleSpec(prompt, cfg.seed)) for prompt in (prompts[0], prompts[-1])]
        other = cfg.seed + 1 if self.other_seed is None else self.other_seed
        noise = rng.normal(0, [other], "z_T", model.latent_shape(*size))
        shares, guidance, finishing = (
            torch.linspace(0, 1, cfg.n),
            instantiate(cfg.guidance),
            inputs.finishing(),
        )

        def make(part: slice, progress: files.Progress) -> Tensor:
            share = shares[part]
            n = len(share)
            denoise = blended(inputs, [inputs.batch([end] * n) for end in ends], share, guidance)
            moving: Sampler = partial(
                slerp_noise, sampler=sampler, other=noise.expand(n, -1, -1, -1), share=share
            )
            *_, z_0 = progress(model.trajectory(denoise, [cfg.seed] * n, size, moving, times))
            return model.first_stage.decode(z_0).clamp(-1, 1)

        images = finishing(files.sample_in_batches(cfg.n, cfg.batch_size, len(times) - 1, model, make))
        names = [f"{i:04d}_{share:.3f}" for i, share in enumerate(shares.tolist())]
        return files.Samples(images, [(" to ".join(prompts), cfg.seed)] * cfg.n, names)

    def check(self, inputs: SamplingContext, prompts: Sequence[str]) -> None:
        """UserError for what there is no way between."""
        if len(prompts) > 2 or inputs.cfg.n < 2:
            raise UserError(
                "task=interpolate goes between one or two prompts, in n >= 2 images, "
                f"not between {len(prompts)} in {inputs.cfg.n}"
            )
        if inputs.weak is not None:
            raise UserError("task=interpolate cannot lead away from a weak model: leave weak=null")


def blended(
    inputs: SamplingContext, ends: Sequence[Batch], share: Float[Tensor, " b"], guidance: Guidance
) -> Denoise:
    """What a sampler calls, for conditions `share` of the way from the first batch's to the last's."""
    model, cfg = inputs.model, inputs.cfg
    size = model.latent_shape(*inputs.size)[1:]

    def told(active: Collection[str]) -> Conditioning:
        first, last = (model.condition(end, size=size, active=model.kept(active)) for end in ends)
        return interpolate_conditions(first, last, share)

    negative = inputs.negative(len(share))
    first, last = (model.without(end, cfg.scale, negative, size) for end in ends)
    if isinstance(guidance, Nested):
        guidance = guidance.among([told(names) for names in guidance.subsets])
    at = model.denoiser, model.schedule, model.parameterization
    cond = told(model.conditioner.conditions_in(ends[0]))
    return guidance(*at, cond, interpolate_conditions(first, last, share), cfg.scale)
