"""Pictures on the way from one prompt and noise to another."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from ldm import keyed
from ldm.cli import sampling
from ldm.cli.build import build
from ldm.cli.tasks.base import Txt2Img
from ldm.cli.tasks.files import Size
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.tasks.interpolate import between, blend
from ldm.errors import UserError
from ldm.model import LatentDiffusion
from ldm.typing import Conditioning


class Interpolate(Txt2Img):
    """n pictures on the way from one prompt and noise to another; with one prompt, between two noises.

    Args:
        other_seed: of the noise at the end; None is the seed after the first noise's.
    """

    def __init__(self, other_seed: int | None) -> None:
        self.other_seed = other_seed

    def __call__(
        self,
        model: LatentDiffusion,
        prompts: Sequence[str],
        cfg: DictConfig,
        size: Size,
        sampler: Sampler,
        times: Float[Tensor, " s"],
    ) -> sampling.Drawn:
        if len(prompts) > 2 or cfg.n < 2:
            raise UserError(
                "task=interpolate goes between one or two prompts, in n >= 2 pictures, "
                f"not between {len(prompts)} in {cfg.n}"
            )
        other = cfg.seed + 1 if self.other_seed is None else self.other_seed
        noise = keyed.normal(0, [other], "z_T", model.latent_shape(*size))
        latent = model.latent_shape(*size)[1:]
        if cfg.weak is not None:
            raise UserError("task=interpolate cannot lead away from a weak model: leave weak=null")
        shares, guidance = torch.linspace(0, 1, cfg.n), build(cfg.guidance)

        def make(part: slice, progress: sampling.Progress) -> Tensor:
            share = shares[part]
            n = len(share)
            first, last = (condition(model, p, n, latent) for p in (prompts[0], prompts[-1]))
            cond = between(first, last, share)
            null = (
                model.null(n, latent) if cfg.negative is None else condition(model, cfg.negative, n, latent)
            )
            at = model.denoiser, model.schedule, model.parameterization
            moving: Sampler = partial(blend, sampler=sampler, other=noise.expand(n, -1, -1, -1), share=share)
            seeds = [cfg.seed] * n
            denoise = guidance(*at, cond, null, cfg.scale)
            *_, z_0 = progress(model.trajectory(denoise, seeds, size, moving, times))
            return model.first_stage.decode(z_0).clamp(-1, 1)

        images = sampling.in_batches(cfg.n, cfg.batch_size, len(times) - 1, model, make)
        names = [f"{i:04d}_{share:.3f}" for i, share in enumerate(shares.tolist())]
        return sampling.Drawn(images, [(" to ".join(prompts), cfg.seed)] * cfg.n, names)


def condition(model: LatentDiffusion, prompt: str, n: int, latent: tuple[int, int]) -> Conditioning:
    """A prompt's condition, n times."""
    return model.condition({"caption": [prompt] * n}, size=latent)
