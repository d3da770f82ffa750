"""What sample.py and the evaluation do with a model file: load, draw, save."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from ldm.cli.config.validate import pixels
from ldm.errors import UserError
from ldm.grid import labelled_grid, to_pil
from ldm.interop import model_file
from ldm.interop.instantiate import build_untrusted
from ldm.model import LatentDiffusion
from ldm.typing import Batch

Progress: TypeAlias = Callable[[Iterator[Tensor]], Iterator[Tensor]]
"""Wraps the iteration over z_T and a sampler's steps."""

MAKING = ("negative", "steps", "scale", "weak", "task", "also", "original_size", "crop", "aesthetic",
    "negative_aesthetic")  # fmt: skip
"""The settings that a image's file tells as they were given."""


@dataclass(frozen=True)
class Samples:
    """Images in [-1, 1] on the CPU; (prompt, seed) of each; their files' names."""

    images: Float[Tensor, "b c h w"]
    wanted: Sequence[tuple[str, int]]
    names: Sequence[str]


def read_prompts(prompts: Any) -> list[str] | None:
    """A list of captions as it is, or the lines of a text file; None where there are none."""
    if prompts is None:
        return None
    if isinstance(prompts, ListConfig):
        found = [str(p) for p in prompts]
    elif not isinstance(prompts, str) or not isfile(prompts):  # a long caption is none, too
        raise UserError(
            f"there is no prompt file {prompts}: give a file, or captions as prompts=\"['a ...']\""
        )
    else:
        found = [line.strip() for line in _text(prompts).splitlines() if line.strip()]
    if not found:
        raise UserError(f"there is no prompt in prompts={prompts}: give captions as prompts=\"['a ...']\"")
    return found


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8-sig")  # with the mark that some editors begin a file with, too
    except UnicodeDecodeError as error:
        raise UserError(
            f"prompts={path} is no text in UTF-8 (byte {error.start}): save it as UTF-8"
        ) from error


def pick_device(name: str) -> torch.device:
    """auto is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(name))
    except RuntimeError as error:
        raise UserError(f"device={name} is none that PyTorch knows: give auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but this machine has no GPU that PyTorch can use: give device=cpu")
    return device


def load_model(path: str, device: str) -> tuple[LatentDiffusion, dict[str, str]]:
    """The model of a model file, built from its header by classes of `ldm` alone; the header's rest."""
    place = pick_device(device)
    tensors, config, header = model_file.load(path, "latent_diffusion")
    model: LatentDiffusion = build_untrusted(config)
    for name, value in model.identity().items():
        if header.get(name) != value:
            raise UserError(
                f"{path} was trained with {name} {header.get(name)} and this version of ldm has {value}: "
                "sample with the version that trained it"
            )
    model.conditioner.load_pretrained()
    model_file.load_state(model, tensors, path)
    return model.to(place).eval(), header


def load_weak(path: str | None, model: LatentDiffusion, device: str) -> LatentDiffusion | None:
    """The smaller or earlier model in `path`; UserError unless it predicts the same of the same latents."""
    if path is None:
        return None
    weak, _ = load_model(path, device)
    t = torch.arange(1.0, model.schedule.num_steps + 1)
    parts = {
        "schedule": type(weak.schedule) is type(model.schedule)
        and torch.equal(weak.schedule.lam(t), model.schedule.lam(t)),
        "parameterization": type(weak.parameterization) is type(model.parameterization)
        and vars(weak.parameterization) == vars(model.parameterization),
        "first stage": model_file.content_hash(weak.first_stage)
        == model_file.content_hash(model.first_stage),
    }
    for part, same in parts.items():
        if not same:
            raise UserError(f"weak={path} has another {part} than the model that it is to guide")
    return weak


def image_size(model: LatentDiffusion, cfg: DictConfig, header: dict[str, str]) -> tuple[int, int]:
    """(height, width) asked for, or the square that the model was trained at.

    UserError for a size that its networks do not take.
    """
    if cfg.size is None:
        return int(header["size"]), int(header["size"])
    height, width = pixels("size", cfg.size, 1)
    unit = model.first_stage.downsampling * model.denoiser.downsampling
    if height % unit or width % unit:
        near = [max(round(side / unit), 1) * unit for side in (height, width)]
        raise UserError(
            f"size=[{height},{width}], and this model draws images whose sides divide by {unit}: give "
            f"size=[{near[0]},{near[1]}], say"
        )
    return height, width


def size_conditions(model: LatentDiffusion, cfg: DictConfig, size: tuple[int, int], n: int) -> Batch:
    """`sizes` and `aesthetic` of n images, where the model reads them (Podell et al. 2023, 2.2)."""
    read, crop = model.conditioner.batch_keys, pixels("crop", cfg.crop, 0)
    if "sizes" not in read and (cfg.original_size is not None or any(crop)):
        raise UserError("original_size and crop: no condition of this model reads sizes, leave them out")
    stored = size if cfg.original_size is None else pixels("original_size", cfg.original_size, 1)
    told = {"sizes": [*stored, *crop, *size], "aesthetic": [cfg.aesthetic]}
    rows: Any = {key: torch.tensor([row] * n).float() for key, row in told.items() if key in read}
    return rows


@torch.no_grad()
def sample_in_batches(
    n: int,
    batch_size: int,
    steps: int,
    model: LatentDiffusion,
    make: Callable[[slice, Progress], Tensor],
) -> Float[Tensor, "b c h w"]:
    """n images, `make(part, progress)` a batch, in [-1, 1] on the CPU, under one bar of n times `steps`."""
    device, images = next(model.denoiser.parameters()).device, []
    # It is shown after the first step, so that a mistake in what the model is told has its own line.
    bar = tqdm(total=n * steps, desc=f"{n} images", unit="step", delay=1e-3)
    for start in range(0, n, batch_size):
        part = slice(start, min(start + batch_size, n))

        def progress(made: Iterator[Tensor], size: int = part.stop - part.start) -> Iterator[Tensor]:
            yield next(made)  # z_T, which cost no step
            for z in made:
                bar.update(size)
                yield z

        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            images.append(make(part, progress).float().cpu())
    bar.close()
    return torch.cat(images)


def save_samples(drawn: Samples, cfg: DictConfig, header: dict[str, str]) -> None:
    """One PNG a image, its making inside as text, and `grid.png` with a row a prompt."""
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    rows, making = dict[str, list[Image.Image]](), _making(cfg, header)
    for image, (prompt, seed), name in zip(drawn.images, drawn.wanted, drawn.names, strict=True):
        info = PngInfo()
        info.add_text("prompt", prompt)
        info.add_text("parameters", json.dumps(making | {"prompt": prompt, "seed": seed}))
        picture = to_pil(image)
        picture.save(out / f"{name}.png", pnginfo=info)
        rows.setdefault(prompt, []).append(picture)
    labelled_grid(list(rows.items()), cfg.grid_scale).save(out / "grid.png")
    print(f"wrote {len(drawn.images)} images and {out / 'grid.png'}")


def _making(cfg: DictConfig, header: dict[str, str]) -> dict[str, Any]:
    """What all images of a call have in common."""
    given: Any = OmegaConf.to_container(cfg)
    return {key: given[key] for key in MAKING} | {
        "guidance": cfg.guidance._target_,
        "sampler": cfg.sampler._target_,
        "ckpt": str(cfg.ckpt),
        "trained_steps": header.get("step"),
    }
