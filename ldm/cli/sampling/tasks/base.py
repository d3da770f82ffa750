"""The base of all tasks: sample n images per prompt from noise, under the model's conditions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.cli.config.validate import parse_pixels
from ldm.cli.sampling.batches import sample_in_batches
from ldm.cli.sampling.options import SamplingOptions
from ldm.cli.sampling.plan import Postprocess, SamplingPlan
from ldm.cli.sampling.tasks.inputs import Size
from ldm.diffusion.samplers import Sampler
from ldm.errors import UserError
from ldm.model import LatentDiffusion
from ldm.typing import Batch


@dataclass(frozen=True)
class SampleSpec:
    """One image to sample.

    Args:
        choices: the values of further conditions, by name, one of several that a task lists: {"class": 3}.
    """

    prompt: str
    seed: int
    choices: Mapping[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The label of the image's row in the grid."""
        return ", ".join([*filter(None, [self.prompt]), *(f"{k} {v}" for k, v in self.choices.items())])


class Txt2Img:
    """Sample n images per prompt from noise. Other tasks change the sampler or add conditions."""

    needs_prompts: ClassVar[bool] = True
    """Whether the user must give prompts if the model uses them."""
    uses_prompts: ClassVar[bool] = True
    """Whether the prompts become conditions."""

    def plan(
        self,
        context: "SamplingContext",
        prompts: Sequence[str],
        *,
        sampler: Sampler,
        times: Float[Tensor, " s"],
    ) -> SamplingPlan:
        """Return what to sample for these prompts; UserError for a mistake in them or in the task's files."""
        specs = context.expand(self.specs(prompts, context.options))
        context.check(specs)
        postprocess = context.postprocess()
        sampler, times, steps = self.prepare_sampler(context, sampler, times)
        columns = len({spec.seed for spec in specs})
        names = [f"{i // columns:04d}_{spec.seed:06d}" for i, spec in enumerate(specs)]
        trajectory = partial(sample_trajectory, context, specs, sampler, times)
        return SamplingPlan(
            [(spec.title, spec.seed) for spec in specs], names, steps, trajectory, postprocess
        )

    def specs(self, prompts: Sequence[str], options: SamplingOptions) -> list[SampleSpec]:
        """Return the images to sample, grouped by prompt."""
        return [SampleSpec(prompt, options.seed + i) for prompt in prompts for i in range(options.n)]

    def expand(self, specs: Sequence[SampleSpec]) -> list[SampleSpec]:
        """Return the images to sample for each of these: the same, or one for every choice of the task."""
        return list(specs)

    def input_size(self, model: LatentDiffusion) -> Size | None:
        """Return the (height, width) that the task's input determines; None if it determines none."""
        return None

    def conditions(self, model: LatentDiffusion, specs: Sequence[SampleSpec], size: Size) -> Batch:
        """Return the task's conditions, a row per image; UserError if the model does not use them."""
        return {}

    def prepare_sampler(
        self, context: "SamplingContext", sampler: Sampler, times: Tensor
    ) -> tuple[Sampler, Tensor, int]:
        """Return the task's sampler, its times and its number of steps."""
        return sampler, times, len(times) - 1

    def postprocess(self, model: LatentDiffusion, size: Size) -> Postprocess | None:
        """Return the function applied to decoded images; its files are read here, before sampling."""
        return None


class Conditional(Txt2Img):
    """Sample n images under a condition that the model was trained with, as `task` or under `also`."""

    needs_prompts = False


@dataclass(frozen=True)
class SamplingContext:
    """A model, the tasks that give its conditions, and their options; only the first task runs the sampler.

    Args:
        size: (height, width) of the images in pixels.
        weak: a model for autoguidance, see `LatentDiffusion.denoise`.
    """

    model: LatentDiffusion
    tasks: Sequence[Txt2Img]
    options: SamplingOptions
    size: Size
    weak: LatentDiffusion | None = None

    @property
    def needs_prompts(self) -> bool:
        """Whether prompts are required: the model uses them, and no task gives another condition."""
        task, *also = self.tasks
        return task.needs_prompts and not also and "caption" in self.model.conditioner.batch_keys

    def require_prompts(self, prompts: Sequence[str] | None) -> list[str]:
        """Return the prompts; if there are none, one empty prompt, or UserError where they are required."""
        if prompts is not None:
            return list(prompts)
        if self.needs_prompts:
            raise UserError("prompts is required: give a list of prompts, or a text file with one per line")
        if [type(task) for task in self.tasks] == [Txt2Img]:
            raise UserError(
                f"this model does not use prompts but {self._condition_names()}: give the task=... of "
                "one of them, or task=unconditional"
            )
        return [""]

    def expand(self, specs: Sequence[SampleSpec]) -> list[SampleSpec]:
        """Return the images to sample for these, with the choices of all tasks combined."""
        for task in self.tasks:
            specs = task.expand(specs)
        return list(specs)

    def check(self, specs: Sequence[SampleSpec]) -> None:
        """Raise the UserError of `conditions` without computing the conditions of more than one image."""
        self.conditions([next((spec for spec in specs if spec.prompt), specs[0])])

    def conditions(self, specs: Sequence[SampleSpec]) -> Batch:
        """Return every condition of the images; UserError for one given twice, unused or missing."""
        batch: Any = self._size_conditions(len(specs))
        if all(task.uses_prompts for task in self.tasks):
            batch["caption"] = [spec.prompt for spec in specs]
        self._check_prompts(specs, batch)
        for task in self.tasks:
            own: Any = task.conditions(self.model, specs, self.size)
            if twice := batch.keys() & own.keys():
                raise UserError(
                    f"two tasks give the condition {', '.join(sorted(twice))}: remove one of them"
                )
            batch |= own
        conditioner = self.model.conditioner
        if missing := set(conditioner.never_dropped) - set(conditioner.conditions_in(batch)):
            raise UserError(
                f"this model needs the condition {', '.join(sorted(missing))}: select its task with "
                "task=..., or add it to the current task with +task@also.NAME=..."
            )
        return batch

    def negative(self, n: int) -> Batch | None:
        """Return the batch of the negative prompt and aesthetic score for n images; None without both."""
        prompt, score = self.options.negative, self.options.negative_aesthetic
        batch: Any = {} if prompt is None else {"caption": [prompt] * n}
        if score is not None:
            batch["aesthetic"] = torch.full((n, 1), score)
        return batch or None

    def postprocess(self) -> Postprocess:
        """Return the function that applies the postprocessing of all tasks in order."""
        steps = [step for task in self.tasks if (step := task.postprocess(self.model, self.size)) is not None]

        def apply(images: Tensor) -> Tensor:
            for step in steps:
                images = step(images)
            return images

        return apply

    def expand_to_one(self, spec: SampleSpec) -> SampleSpec:
        """Return the single image to sample for this one; UserError if the tasks list several choices."""
        first, *others = self.expand([spec])
        if others:
            raise UserError(
                f"this task takes a single choice, but got {first.title} to {others[-1].title}: give "
                "only one of them"
            )
        return first

    def _size_conditions(self, n: int) -> Batch:
        """Return `sizes` and `aesthetic` of n images, if the model uses them (Podell et al. 2023, 2.2)."""
        used, options = self.model.conditioner.batch_keys, self.options
        if "sizes" not in used and (options.original_size is not None or any(options.crop)):
            raise UserError("this model has no size conditions: remove original_size and crop")
        original = options.original_size or self.size
        values = {"sizes": [*original, *options.crop, *self.size], "aesthetic": [options.aesthetic]}
        rows: Any = {key: torch.tensor([row] * n).float() for key, row in values.items() if key in used}
        return rows

    def _check_prompts(self, specs: Sequence[SampleSpec], batch: Mapping[str, Any]) -> None:
        if not any(spec.prompt for spec in specs):
            return
        if "caption" not in batch:
            raise UserError("this task does not use prompts: remove prompts")
        if "caption" not in self.model.conditioner.batch_keys:
            raise UserError(f"this model does not use prompts but {self._condition_names()}: remove prompts")

    def _condition_names(self) -> str:
        return ", ".join(self.model.conditioner.conditioners) or "no conditions"


def sample_images(
    context: SamplingContext, specs: Sequence[SampleSpec], *, sampler: Sampler, times: Float[Tensor, " s"]
) -> Float[Tensor, "b c h w"]:
    """Sample the images, in [-1, 1] on the CPU."""
    context.check(specs)
    trajectory = partial(sample_trajectory, context, specs, sampler, times)
    batch_size, steps = context.options.batch_size, len(times) - 1
    return sample_in_batches(context.model, len(specs), batch_size, steps, trajectory)


def sample_trajectory(
    context: SamplingContext,
    specs: Sequence[SampleSpec],
    sampler: Sampler,
    times: Float[Tensor, " s"],
    part: slice,
) -> Iterator[Float[Tensor, "b z h w"]]:
    """Yield z_T and every z_t of the images of a slice; conditions are computed for these images only."""
    model, options, size = context.model, context.options, context.size
    seeds = [spec.seed for spec in specs[part]]
    batch = context.conditions(specs[part])
    denoise = model.denoise(
        batch,
        scale=options.scale,
        negative=context.negative(len(seeds)),
        guidance=options.guidance,
        weak=context.weak,
        size=model.latent_shape(*size)[1:],
        active=model.conditioner.conditions_in(batch),
    )
    return model.trajectory(denoise, seeds, size, sampler, times)


def additional_tasks(tasks: Mapping[str, Any]) -> list[Conditional]:
    """Return the tasks under `also`; UserError for one that gives no condition."""
    for name, task in tasks.items():
        if not isinstance(task, Conditional):
            raise UserError(
                f"also.{name} gives no condition: add one that does, for example +task@also.{name}=depth, "
                "or select this task with task=..."
            )
    return list(tasks.values())


def output_size(
    tasks: Sequence[Txt2Img], model: LatentDiffusion, requested: Any, header: Mapping[str, str]
) -> Size:
    """Return (height, width): as requested, else that of a task's input, else the training size.

    UserError for a size that is not a multiple of the networks' downsampling factor.
    """
    if requested is None:
        fixed = [size for task in tasks if (size := task.input_size(model)) is not None]
        return fixed[0] if fixed else (int(header["size"]), int(header["size"]))
    height, width = parse_pixels("size", requested, 1)
    factor = model.first_stage.downsampling * model.denoiser.downsampling
    if height % factor or width % factor:
        nearest = [max(round(length / factor), 1) * factor for length in (height, width)]
        raise UserError(
            f"size=[{height},{width}]: height and width must be multiples of {factor} for this model, for "
            f"example size=[{nearest[0]},{nearest[1]}]"
        )
    return height, width


def image_channels(model: LatentDiffusion) -> int:
    """Return the number of channels of the model's images: 3 for RGB, 1 for grey."""
    return model.first_stage.encoder.in_channels


@torch.no_grad()
def encode_image(model: LatentDiffusion, x: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 z h2 w2"]:
    """Return the latent z_0 of an image in [-1, 1], the mean of its posterior."""
    first_stage, device = model.first_stage, next(model.denoiser.parameters()).device
    return first_stage.normalize(first_stage.posterior(x.to(device)).mean).float()
