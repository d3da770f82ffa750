"""Interpolation between two prompts and two noises."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import rng
from ldm.cli.sampling.plan import SamplingPlan
from ldm.cli.sampling.tasks.base import SampleSpec, SamplingContext, Txt2Img
from ldm.diffusion.guidance import Denoise, NestedCFG
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.tasks.interpolate import interpolate_conditions, slerp_noise
from ldm.errors import UserError
from ldm.typing import Batch, Conditioning, Seed


class Interpolate(Txt2Img):
    """Sample n images between two prompts and noises; with one prompt, between two noises.

    Args:
        other_seed: of the noise at the end; None is the first seed + 1.
    """

    def __init__(self, other_seed: Seed | None) -> None:
        self.other_seed = other_seed

    def plan(
        self,
        context: SamplingContext,
        prompts: Sequence[str],
        *,
        sampler: Sampler,
        times: Float[Tensor, " s"],
    ) -> SamplingPlan:
        self.check(context, prompts)
        model, options, size = context.model, context.options, context.size
        ends = [
            context.expand_to_one(SampleSpec(prompt, options.seed)) for prompt in (prompts[0], prompts[-1])
        ]
        context.check(ends)
        other_seed = options.seed + 1 if self.other_seed is None else self.other_seed
        other = rng.normal(0, [other_seed], "z_T", model.latent_shape(*size))
        weights = torch.linspace(0, 1, options.n)

        def trajectory(part: slice) -> Iterator[Tensor]:
            weight = weights[part]
            n = len(weight)
            denoise = interpolated_denoise(context, [context.conditions([end] * n) for end in ends], weight)
            between: Sampler = partial(
                slerp_noise, sampler=sampler, other=other.expand(n, -1, -1, -1), weight=weight
            )
            return model.trajectory(denoise, [options.seed] * n, size, between, times)

        titles_and_seeds = [(" to ".join(prompts), options.seed)] * options.n
        names = [f"{i:04d}_{weight:.3f}" for i, weight in enumerate(weights.tolist())]
        return SamplingPlan(titles_and_seeds, names, len(times) - 1, trajectory, context.postprocess())

    def check(self, context: SamplingContext, prompts: Sequence[str]) -> None:
        """Raise UserError for what cannot be interpolated."""
        if len(prompts) > 2 or context.options.n < 2:
            raise UserError(
                f"task=interpolate takes one or two prompts and n of 2 or more, not {len(prompts)} prompts "
                f"and n={context.options.n}"
            )
        if context.weak is not None:
            raise UserError("task=interpolate does not support autoguidance: set weak=null")


def interpolated_denoise(
    context: SamplingContext, ends: Sequence[Batch], weight: Float[Tensor, " b"]
) -> Denoise:
    """Return what a sampler calls, for conditions between the first batch's (weight 0) and the last's (1)."""
    model, options = context.model, context.options
    size = model.latent_shape(*context.size)[1:]

    def interpolate(names: Collection[str]) -> Conditioning:
        first, last = (model.condition(end, size=size, active=model.active_names(names)) for end in ends)
        return interpolate_conditions(first, last, weight)

    negative, guidance = context.negative(len(weight)), options.guidance
    first, last = (model.null_condition(end, options.scale, negative, size) for end in ends)
    if isinstance(guidance, NestedCFG):
        guidance = guidance.with_conditions([interpolate(names) for names in guidance.subsets])
    cond = interpolate(model.conditioner.conditions_in(ends[0]))
    null = interpolate_conditions(first, last, weight)
    return guidance(model.prediction(cond, null), options.scale)
