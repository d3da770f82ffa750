"""What all tasks of sample.py share: n pictures a prompt, from noise."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from ldm.cli import sampling
from ldm.cli.tasks.files import Size
from ldm.diffusion.samplers import Sampler
from ldm.model import LatentDiffusion
from ldm.typing import Batch


class Txt2Img:
    """n pictures a prompt, from noise. The other tasks are this one with another sampler."""

    def __call__(
        self,
        model: LatentDiffusion,
        prompts: Sequence[str],
        cfg: DictConfig,
        size: Size,
        sampler: Sampler,
        times: Float[Tensor, " s"],
    ) -> sampling.Drawn:
        """The pictures, in [-1, 1] on the CPU, and what each is."""
        wanted = self.wanted(prompts, cfg)
        sampler, times, steps = self.changed(model, size, sampler, times)
        batch = self.batch(model, wanted, size)
        images = sampling.draw(model, wanted, cfg, size, sampler, times, steps, batch)
        each = len({seed for _, seed in wanted})  # pictures a row
        names = [f"{i // each:04d}_{seed:06d}" for i, (_, seed) in enumerate(wanted)]
        return sampling.Drawn(self.finished(images, size), wanted, names)

    def wanted(self, prompts: Sequence[str], cfg: DictConfig) -> list[tuple[str, int]]:
        """(prompt, seed) of each picture."""
        return [(prompt, cfg.seed + i) for prompt in prompts for i in range(cfg.n)]

    def batch(self, model: LatentDiffusion, wanted: Sequence[tuple[str, int]], size: Size) -> Batch:
        """The conditions, a row for each picture; UserError for one that the model does not have."""
        return {"caption": [prompt for prompt, _ in wanted]}

    def changed(
        self, model: LatentDiffusion, size: Size, sampler: Sampler, times: Tensor
    ) -> tuple[Sampler, Tensor, int]:
        """The sampler and the times that the task needs, and how many steps they make."""
        return sampler, times, len(times) - 1

    def finished(self, images: Tensor, size: Size) -> Tensor:
        """What is done to the decoded pictures."""
        return images


@torch.no_grad()
def latent(model: LatentDiffusion, x: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 z h2 w2"]:
    """z_0 of a picture, the mean of its posterior."""
    first_stage, device = model.first_stage, next(model.denoiser.parameters()).device
    return first_stage.normalize(first_stage.posterior(x.to(device)).mean).float()
