"""What sample.py does, by `task=txt2img|img2img|inpaint|interpolate|invert`: one class each."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import max_pool2d

from ldm import keyed
from ldm.cli import sampling
from ldm.cli.build import build
from ldm.data.decode import Unreadable, decode
from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.tasks.img2img import img2img, remaining
from ldm.diffusion.tasks.inpaint import inpaint, resample
from ldm.diffusion.tasks.interpolate import between, blend
from ldm.diffusion.tasks.invert import invert
from ldm.errors import UserError
from ldm.model import LatentDiffusion
from ldm.typing import Conditioning

Size = tuple[int, int]
"""(height, width) in pixels."""


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
        images = sampling.draw(model, wanted, cfg, size, sampler, times, steps)
        each = len(wanted) // len(prompts)
        names = [f"{i // each:04d}_{seed:06d}" for i, (_, seed) in enumerate(wanted)]
        return sampling.Drawn(self.finished(images, size), wanted, names)

    def wanted(self, prompts: Sequence[str], cfg: DictConfig) -> list[tuple[str, int]]:
        """(prompt, seed) of each picture."""
        return [(prompt, cfg.seed + i) for prompt in prompts for i in range(cfg.n)]

    def changed(
        self, model: LatentDiffusion, size: Size, sampler: Sampler, times: Tensor
    ) -> tuple[Sampler, Tensor, int]:
        """The sampler and the times that the task needs, and how many steps they make."""
        return sampler, times, len(times) - 1

    def finished(self, images: Tensor, size: Size) -> Tensor:
        """What is done to the decoded pictures."""
        return images


class Img2Img(Txt2Img):
    """Pictures from prompts and another picture (SDEdit).

    Args:
        image: the picture's file; it is scaled to cover the size, its middle cut out.
        strength: the share of the steps that are made, in (0, 1]: 0.3 changes little, 1 nearly all.
    """

    def __init__(self, image: str, strength: float) -> None:
        if not 0 < strength <= 1:
            raise UserError(f"task.strength is the share of the steps, in (0, 1], not {strength}")
        self.image, self.strength = image, strength

    def changed(
        self, model: LatentDiffusion, size: Size, sampler: Sampler, times: Tensor
    ) -> tuple[Sampler, Tensor, int]:
        z_0, times = latent(model, read_picture(self.image, size)), remaining(times, self.strength)
        return partial(img2img, sampler=sampler, z_0=z_0, strength=1.0), times, len(times) - 1


class Inpaint(Txt2Img):
    """Pictures of which the part under a mask is drawn anew and the rest stays, by any model.

    Args:
        image: the picture's file.
        mask: a file of the same size, white where the picture is to be drawn.
        repeats, jump: every `jump` steps are made `repeats` times, for a better fit (RePaint); 1 is once.
    """

    def __init__(self, image: str, mask: str, repeats: int, jump: int) -> None:
        if repeats < 1 or jump < 1:
            raise UserError(f"task.repeats and task.jump are at least 1, not {repeats} and {jump}")
        self.image, self.mask, self.repeats, self.jump = image, mask, repeats, jump

    def changed(
        self, model: LatentDiffusion, size: Size, sampler: Sampler, times: Tensor
    ) -> tuple[Sampler, Tensor, int]:
        known = latent(model, read_picture(self.image, size))
        # A place of the latent is drawn anew if any of its pixels is.
        mask = max_pool2d(self._mask(size), model.first_stage.downsampling).to(known)
        keeping: Sampler = partial(inpaint, sampler=sampler, known=known, mask=mask)
        if self.repeats == 1:
            return keeping, times, len(times) - 1
        again: Sampler = partial(resample, sampler=keeping, repeats=self.repeats, jump=self.jump)
        return again, times, self.repeats * (len(times) - 1)

    def finished(self, images: Tensor, size: Size) -> Tensor:
        return torch.where(self._mask(size) > 0, images, read_picture(self.image, size))

    def _mask(self, size: Size) -> Float[Tensor, "1 1 h w"]:
        picture, mask = (_open(path, name) for path, name in ((self.image, "image"), (self.mask, "mask")))
        if picture.size != mask.size:
            (w, h), (mask_w, mask_h) = picture.size, mask.size
            raise UserError(
                f"task.mask={self.mask} is {mask_w}x{mask_h} and task.image is {w}x{h}: give them one size"
            )
        white = (_fitted(mask.convert("L"), size) >= 0.5).float()
        if not white.any():
            raise UserError(f"task.mask={self.mask} has no white: paint white what is to be drawn anew")
        return white


class Invert(Txt2Img):
    """A picture's own noise by DDIM, drawn again: the picture itself from `prompt`, edited from another one.

    One picture a prompt, since nothing is left to the seed.

    Args:
        image: the picture's file.
        prompt: what it shows, for the way to its noise, which is not guided.
        refinements: evaluations a step that bring the way back nearer to the picture.
    """

    def __init__(self, image: str, prompt: str, refinements: int) -> None:
        if refinements < 0:
            raise UserError(f"task.refinements is at least 0, not {refinements}")
        self.image, self.prompt, self.refinements = image, prompt, refinements

    def wanted(self, prompts: Sequence[str], cfg: DictConfig) -> list[tuple[str, int]]:
        return [(prompt, cfg.seed) for prompt in prompts]

    @torch.no_grad()
    def changed(
        self, model: LatentDiffusion, size: Size, sampler: Sampler, times: Tensor
    ) -> tuple[Sampler, Tensor, int]:
        z_0 = latent(model, read_picture(self.image, size))
        denoise = model.denoise({"caption": [self.prompt]}, scale=1.0)
        *_, z_T = invert(denoise, z_0, times, model.schedule, self.refinements)
        return partial(_from_noise, sampler=sampler, own=z_T), times, len(times) - 1


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
        if cfg.weak is not None:
            raise UserError("task=interpolate cannot lead away from a weak model: leave weak=null")
        shares, guidance = torch.linspace(0, 1, cfg.n), build(cfg.guidance)

        def make(part: slice, progress: sampling.Progress) -> Tensor:
            share = shares[part]
            n = len(share)
            cond = between(condition(model, prompts[0], n), condition(model, prompts[-1], n), share)
            null = model.conditioner.null(n) if cfg.negative is None else condition(model, cfg.negative, n)
            at = model.denoiser, model.schedule, model.parameterization
            moving: Sampler = partial(blend, sampler=sampler, other=noise.expand(n, -1, -1, -1), share=share)
            seeds = [cfg.seed] * n
            denoise = guidance(*at, cond, null, cfg.scale)
            *_, z_0 = progress(model.trajectory(denoise, seeds, size, moving, times))
            return model.first_stage.decode(z_0).clamp(-1, 1)

        images = sampling.in_batches(cfg.n, cfg.batch_size, len(times) - 1, model, make)
        names = [f"{i:04d}_{share:.3f}" for i, share in enumerate(shares.tolist())]
        return sampling.Drawn(images, [(" to ".join(prompts), cfg.seed)] * cfg.n, names)


def condition(model: LatentDiffusion, prompt: str, n: int) -> Conditioning:
    """A prompt's condition, n times."""
    return model.conditioner({"caption": [prompt] * n})


@torch.no_grad()
def latent(model: LatentDiffusion, x: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 z h2 w2"]:
    """z_0 of a picture, the mean of its posterior."""
    first_stage, device = model.first_stage, next(model.denoiser.parameters()).device
    return first_stage.normalize(first_stage.posterior(x.to(device)).mean).float()


def read_picture(path: str, size: Size) -> Float[Tensor, "1 3 h w"]:
    """A picture in [-1, 1], scaled to cover `size`, its middle cut out."""
    return _fitted(_open(path, "image"), size) * 2 - 1


def _open(path: str, name: str) -> Image.Image:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no picture task.{name}={path}: give the path of a picture's file")
    try:
        return decode(file.read_bytes())
    except Unreadable as error:
        raise UserError(f"task.{name}={path} cannot be read ({error}): give a PNG or JPEG, say") from error


def _fitted(picture: Image.Image, size: Size) -> Float[Tensor, "1 c h w"]:
    """In [0, 1]."""
    fitted = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(fitted)).float() / 255
    return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1))[None]


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
