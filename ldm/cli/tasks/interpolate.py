"""Pictures on the way from one prompt and noise to another."""

from collections.abc import Collection, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import keyed
from ldm.cli import sampling
from ldm.cli.build import build
from ldm.cli.tasks.base import Inputs, Txt2Img, Wanted
from ldm.diffusion.guidance import Denoise, Guidance, Nested
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.tasks.interpolate import between, blend
from ldm.errors import UserError
from ldm.typing import Batch, Conditioning


class Interpolate(Txt2Img):
    """n pictures on the way from one prompt and noise to another; with one prompt, between two noises.

    Args:
        other_seed: of the noise at the end; None is the seed after the first noise's.
    """

    def __init__(self, other_seed: int | None) -> None:
        self.other_seed = other_seed

    def __call__(
        self, inputs: Inputs, prompts: Sequence[str], sampler: Sampler, times: Float[Tensor, " s"]
    ) -> sampling.Drawn:
        self.check(inputs, prompts)
        model, cfg, size = inputs.model, inputs.cfg, inputs.size
        ends = [inputs.one(Wanted(prompt, cfg.seed)) for prompt in (prompts[0], prompts[-1])]
        other = cfg.seed + 1 if self.other_seed is None else self.other_seed
        noise = keyed.normal(0, [other], "z_T", model.latent_shape(*size))
        shares, guidance, finishing = torch.linspace(0, 1, cfg.n), build(cfg.guidance), inputs.finishing()

        def make(part: slice, progress: sampling.Progress) -> Tensor:
            share = shares[part]
            n = len(share)
            denoise = blended(inputs, [inputs.batch([end] * n) for end in ends], share, guidance)
            moving: Sampler = partial(blend, sampler=sampler, other=noise.expand(n, -1, -1, -1), share=share)
            *_, z_0 = progress(model.trajectory(denoise, [cfg.seed] * n, size, moving, times))
            return model.first_stage.decode(z_0).clamp(-1, 1)

        images = finishing(sampling.in_batches(cfg.n, cfg.batch_size, len(times) - 1, model, make))
        names = [f"{i:04d}_{share:.3f}" for i, share in enumerate(shares.tolist())]
        return sampling.Drawn(images, [(" to ".join(prompts), cfg.seed)] * cfg.n, names)

    def check(self, inputs: Inputs, prompts: Sequence[str]) -> None:
        """UserError for what there is no way between."""
        if len(prompts) > 2 or inputs.cfg.n < 2:
            raise UserError(
                "task=interpolate goes between one or two prompts, in n >= 2 pictures, "
                f"not between {len(prompts)} in {inputs.cfg.n}"
            )
        if inputs.weak is not None:
            raise UserError("task=interpolate cannot lead away from a weak model: leave weak=null")


def blended(inputs: Inputs, ends: Sequence[Batch], share: Float[Tensor, " b"], guidance: Guidance) -> Denoise:
    """What a sampler calls, for conditions `share` of the way from the first batch's to the last's."""
    model, cfg = inputs.model, inputs.cfg
    size = model.latent_shape(*inputs.size)[1:]

    def told(keep: Collection[str]) -> Conditioning:
        first, last = (model.condition(end, size=size, keep=model.kept(keep)) for end in ends)
        return between(first, last, share)

    negative = inputs.negative(len(share))
    first, last = (model.without(end, cfg.scale, negative, size) for end in ends)
    if isinstance(guidance, Nested):
        guidance = guidance.among([told(names) for names in guidance.subsets])
    at = model.denoiser, model.schedule, model.parameterization
    cond = told(model.conditioner.told_by(ends[0]))
    return guidance(*at, cond, between(first, last, share), cfg.scale)
