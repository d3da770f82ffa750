"""What all tasks of sample.py share: n images a prompt, from noise, and what the model is told of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling import files
from ldm.cli.sampling.tasks.inputs import Size
from ldm.diffusion.samplers import Sampler
from ldm.errors import UserError
from ldm.model import LatentDiffusion
from ldm.typing import Batch

Postprocess: TypeAlias = Callable[[Tensor], Tensor]
"""Images in [-1, 1] as they are decoded, b c h w, to those that are wanted."""


@dataclass(frozen=True)
class SampleSpec:
    """A image that is to be drawn.

    Args:
        choices: what else a task makes images of, as {"class": 3}.
    """

    caption: str
    seed: int
    choices: Mapping[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What stands beside it in the grid."""
        return ", ".join([*filter(None, [self.caption]), *(f"{k} {v}" for k, v in self.choices.items())])


class Txt2Img:
    """n images a prompt, from noise. The other tasks are this one with another sampler, or conditions."""

    needs_prompts: ClassVar[bool] = True
    """Whether the user is to give prompts, where the model reads them."""
    captioned: ClassVar[bool] = True
    """Whether the model is told the captions."""

    def __call__(
        self, inputs: "Inputs", prompts: Sequence[str], sampler: Sampler, times: Float[Tensor, " s"]
    ) -> files.Samples:
        """The images, in [-1, 1] on the CPU, and what each is."""
        wanted = inputs.each(self.wanted(prompts, inputs.cfg))
        finishing = inputs.finishing()
        sampler, times, steps = self.changed(inputs, sampler, times)
        images = finishing(sample_images(inputs, wanted, sampler, times, steps))
        columns = len({w.seed for w in wanted})
        names = [f"{i // columns:04d}_{w.seed:06d}" for i, w in enumerate(wanted)]
        return files.Samples(images, [(w.title, w.seed) for w in wanted], names)

    def wanted(self, prompts: Sequence[str], cfg: DictConfig) -> list[SampleSpec]:
        """The images, a row of them a prompt."""
        return [SampleSpec(prompt, cfg.seed + i) for prompt in prompts for i in range(cfg.n)]

    def each(self, wanted: Sequence[SampleSpec]) -> list[SampleSpec]:
        """The images that the task makes of these: the same, or several of each."""
        return list(wanted)

    def size(self, model: LatentDiffusion) -> Size | None:
        """(height, width) where the task's own input decides it; None where the user and the model do."""
        return None

    def batch(self, model: LatentDiffusion, wanted: Sequence[SampleSpec], size: Size) -> Batch:
        """The task's own conditions, a row for each image; UserError where the model has no such one."""
        return {}

    def changed(self, inputs: "Inputs", sampler: Sampler, times: Tensor) -> tuple[Sampler, Tensor, int]:
        """The sampler and the times that the task needs, and how many steps they make."""
        return sampler, times, len(times) - 1

    def finishing(self, model: LatentDiffusion, size: Size) -> Postprocess | None:
        """What is to be done to the decoded images; its files are read before any is drawn."""
        return None


class Conditional(Txt2Img):
    """n images of what a model was trained to be told: alone, or `also`, beside another task."""

    needs_prompts = False


@dataclass(frozen=True)
class SamplingContext:
    """What several tasks tell one model of images of a size; the first of them draws.

    Args:
        weak: a model to lead away from, see `LatentDiffusion.denoise`.
    """

    model: LatentDiffusion
    tasks: Sequence[Txt2Img]
    cfg: DictConfig
    size: Size
    weak: LatentDiffusion | None = None

    @property
    def needs_prompts(self) -> bool:
        """Whether captions alone can tell the model what to draw."""
        task, *also = self.tasks
        return task.needs_prompts and not also and "caption" in self.model.conditioner.keys

    def captions(self, prompts: Sequence[str] | None) -> list[str]:
        """The prompts, or the empty one where they can be left out. UserError where they cannot."""
        if prompts is not None:
            return list(prompts)
        if self.needs_prompts:
            raise UserError(
                "prompts is needed (a list of captions, or a text file with one a line): give it as "
                "prompts=..."
            )
        if [type(task) for task in self.tasks] == [Txt2Img]:
            raise UserError(
                f"no condition of this model reads prompts, it is told {self._told()}: give the task=... "
                "that tells it, or task=unconditional"
            )
        return [""]

    def each(self, wanted: Sequence[SampleSpec]) -> list[SampleSpec]:
        """The images that all tasks together make of these."""
        for task in self.tasks:
            wanted = task.each(wanted)
        return list(wanted)

    def batch(self, wanted: Sequence[SampleSpec]) -> Batch:
        """Every condition of the images. UserError for one told twice, in vain, or lacking."""
        batch: Any = files.size_conditions(self.model, self.cfg, self.size, len(wanted))
        if all(task.captioned for task in self.tasks):
            batch["caption"] = [w.caption for w in wanted]
        self._check_captions(wanted, batch)
        for task in self.tasks:
            told: Any = task.batch(self.model, wanted, self.size)
            if twice := batch.keys() & told.keys():
                raise UserError(f"two tasks tell the model {', '.join(sorted(twice))}: leave one of them out")
            batch |= told
        conditioner = self.model.conditioner
        if lacking := set(conditioner.never_dropped) - set(conditioner.conditions_in(batch)):
            raise UserError(
                f"this model cannot draw without {', '.join(sorted(lacking))}: give the task=... that tells "
                "it, or add it to this one by +task@also.NAME=..."
            )
        return batch

    def negative(self, n: int) -> Batch | None:
        """The caption and the score that guidance is to lead n images away from, if one is given."""
        caption, score = self.cfg.get("negative"), self.cfg.get("negative_aesthetic")
        told: Any = {} if caption is None else {"caption": [str(caption)] * n}
        if score is not None:
            told["aesthetic"] = torch.full((n, 1), float(score))
        return told or None

    def finishing(self) -> Postprocess:
        """What all tasks together are to do to the decoded images."""
        found = [task.finishing(self.model, self.size) for task in self.tasks]

        def finish(images: Tensor) -> Tensor:
            for one in filter(None, found):
                images = one(images)
            return images

        return finish

    def one(self, wanted: SampleSpec) -> SampleSpec:
        """The one image that all tasks make of this. UserError where they make several."""
        first, *additional_tasks = self.each([wanted])
        if additional_tasks:
            raise UserError(
                f"this task goes with one choice, not with {first.title} to {additional_tasks[-1].title}"
            )
        return first

    def _check_captions(self, wanted: Sequence[SampleSpec], batch: Mapping[str, Any]) -> None:
        if not any(w.caption for w in wanted):
            return
        if "caption" not in batch:
            raise UserError("the task draws without captions: leave prompts out")
        if "caption" not in self.model.conditioner.keys:
            raise UserError(
                f"no condition of this model reads prompts, it is told {self._told()}: leave prompts out"
            )

    def _told(self) -> str:
        return ", ".join(self.model.conditioner.conditioners) or "nothing"


def sample_images(
    inputs: SamplingContext,
    wanted: Sequence[SampleSpec],
    sampler: Sampler,
    times: Float[Tensor, " s"],
    steps: int | None = None,
) -> Float[Tensor, "b c h w"]:
    """The images, in [-1, 1] on the CPU.

    Args:
        steps: how many the sampler makes, where that is not one for each of the times.
    """
    model, cfg = inputs.model, inputs.cfg
    batch: Any = inputs.batch(wanted)
    told, guidance = model.conditioner.conditions_in(batch), instantiate(cfg.guidance)

    def make(part: slice, progress: files.Progress) -> Tensor:
        seeds = [w.seed for w in wanted[part]]
        rows: Any = {key: values[part] for key, values in batch.items()}
        negative = inputs.negative(len(seeds))
        return model.generate(
            rows,
            seeds,
            inputs.size,
            sampler,
            times,
            cfg.scale,
            negative,
            progress,
            guidance,
            inputs.weak,
            told,
        )

    return files.sample_in_batches(len(wanted), cfg.batch_size, steps or len(times) - 1, model, make)


def additional_tasks(built: Mapping[str, Any]) -> list[Conditional]:
    """The tasks under `also`. UserError for what can stand there alone."""
    for name, task in built.items():
        if not isinstance(task, Conditional):
            raise UserError(
                f"also.{name} tells the model no condition: add a task that does as +task@also.{name}=depth, "
                "say, and give this one as task=..."
            )
    return list(built.values())


def output_size(
    tasks: Sequence[Txt2Img], model: LatentDiffusion, cfg: DictConfig, header: dict[str, str]
) -> Size:
    """(height, width) asked for, or of a task's own input, or the square that the model was trained at."""
    own = [size for task in tasks if (size := task.size(model)) is not None]
    return own[0] if own and cfg.size is None else files.image_size(model, cfg, header)


def channels(model: LatentDiffusion) -> int:
    """Of the model's images: 3 are RGB, 1 is grey."""
    return model.first_stage.encoder.in_channels


@torch.no_grad()
def encode_image(model: LatentDiffusion, x: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 z h2 w2"]:
    """z_0 of a image, the mean of its posterior."""
    first_stage, device = model.first_stage, next(model.denoiser.parameters()).device
    return first_stage.normalize(first_stage.posterior(x.to(device)).mean).float()
