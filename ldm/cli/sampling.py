"""What sample.py and the evaluation do with a sampling file: load, draw, save."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from ldm.cli.build import build, build_untrusted
from ldm.errors import UserError
from ldm.grid import labelled_grid, to_pil
from ldm.interop import safetensors
from ldm.model import LatentDiffusion, Sampler
from ldm.typing import Batch

Progress: TypeAlias = Callable[[Iterator[Tensor]], Iterator[Tensor]]
"""Wraps the iteration over z_T and a sampler's steps."""


@dataclass(frozen=True)
class Drawn:
    """Pictures in [-1, 1] on the CPU; (prompt, seed) of each; their files' names."""

    images: Float[Tensor, "b 3 h w"]
    wanted: Sequence[tuple[str, int]]
    names: Sequence[str]


def read_prompts(prompts: str | ListConfig | None, needed: bool = True) -> list[str]:
    """A list of captions as it is, or the lines of a text file; one that is empty where none are needed."""
    if prompts is None and not needed:
        return [""]
    if prompts is None:
        raise UserError(
            "prompts is needed (a list of captions, or a text file with one a line): give it as prompts=..."
        )
    if not isinstance(prompts, str):
        found = [str(p) for p in prompts]
    elif not Path(prompts).is_file():
        raise UserError(
            f"there is no prompt file {prompts}: give a file, or captions as prompts=\"['a ...']\""
        )
    else:
        found = [line.strip() for line in Path(prompts).read_text().splitlines() if line.strip()]
    if not found:
        raise UserError(f"there is no prompt in prompts={prompts}: give captions as prompts=\"['a ...']\"")
    return found


def pick_device(name: str) -> torch.device:
    """auto is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("device=cuda, but this machine has no GPU that PyTorch can use: give device=cpu")
    return torch.device(name)


def load(path: str, device: str) -> tuple[LatentDiffusion, dict[str, str]]:
    """The model of a sampling file, built from its header by classes of `ldm` alone; the header's rest."""
    tensors, config, header = safetensors.load(path, "latent_diffusion")
    model: LatentDiffusion = build_untrusted(config)
    for name, value in model.identity().items():
        if header.get(name) != value:
            raise UserError(
                f"{path} was trained with {name} {header.get(name)} and this version of ldm has {value}: "
                "sample with the version that trained it"
            )
    model.conditioner.load_pretrained()
    safetensors.fill(model, tensors, path)
    return model.to(pick_device(device)).eval(), header


def load_weak(path: str | None, model: LatentDiffusion, device: str) -> LatentDiffusion | None:
    """The smaller or earlier model in `path`; UserError unless it predicts the same of the same latents."""
    if path is None:
        return None
    weak, _ = load(path, device)
    t = torch.arange(1.0, model.schedule.num_steps + 1)
    parts = {
        "schedule": type(weak.schedule) is type(model.schedule)
        and torch.equal(weak.schedule.lam(t), model.schedule.lam(t)),
        "parameterization": type(weak.parameterization) is type(model.parameterization)
        and vars(weak.parameterization) == vars(model.parameterization),
        "first stage": safetensors.content_hash(weak.first_stage)
        == safetensors.content_hash(model.first_stage),
    }
    for part, same in parts.items():
        if not same:
            raise UserError(f"weak={path} has another {part} than the model that it is to guide")
    return weak


def picture_size(cfg: DictConfig, header: dict[str, str]) -> tuple[int, int]:
    """(height, width) asked for, or the square that the model was trained at."""
    if cfg.size is None:
        return int(header["size"]), int(header["size"])
    height, width = cfg.size
    return height, width


def numbers(model: LatentDiffusion, cfg: DictConfig, size: tuple[int, int], n: int) -> Batch:
    """`sizes` and `aesthetic` of n pictures, where the model reads them (Podell et al. 2023, 2.2)."""
    read = model.conditioner.keys
    if "sizes" not in read and (cfg.original_size is not None or any(cfg.crop)):
        raise UserError("original_size and crop: no condition of this model reads sizes, leave them out")
    stored = size if cfg.original_size is None else _pair("original_size", cfg.original_size, 1)
    told = {"sizes": [*stored, *_pair("crop", cfg.crop, 0), *size], "aesthetic": [cfg.aesthetic]}
    rows: Any = {key: torch.tensor([row] * n).float() for key, row in told.items() if key in read}
    return rows


def _pair(name: str, values: Sequence[float], least: int) -> Sequence[float]:
    if len(values) != 2 or any(not isinstance(v, int | float) or v < least for v in values):
        raise UserError(f"{name}={list(values)} is no pair of pixels: give two numbers of {least} or more")
    return values


def draw(
    model: LatentDiffusion,
    wanted: Sequence[tuple[str, int]],
    cfg: DictConfig,
    size: tuple[int, int],
    sampler: Sampler,
    times: Float[Tensor, " s"],
    steps: int | None = None,
    batch: Batch | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """A picture of `size` (height, width) for each (prompt, seed), in [-1, 1] on the CPU.

    `steps` is how many the sampler makes where that is not one for each of the times. `batch` has a row of
    conditions for each picture, where prompts are not all.
    """
    if batch is None:
        batch = numbers(model, cfg, size, len(wanted)) | {"caption": [prompt for prompt, _ in wanted]}
    given: Batch = batch
    told = model.conditioner.told_by(given)
    guidance, weak = build(cfg.guidance), load_weak(cfg.weak, model, cfg.device)

    def make(part: slice, progress: Progress) -> Tensor:
        seeds = [seed for _, seed in wanted[part]]
        rows: Any = {key: values[part] for key, values in given.items()}  # type: ignore[index]
        negative: Batch | None = (
            None if cfg.get("negative") is None else {"caption": [cfg.negative] * len(seeds)}
        )
        return model.generate(
            rows, seeds, size, sampler, times, cfg.scale, negative, progress, guidance, weak, told
        )

    return in_batches(len(wanted), cfg.batch_size, steps or len(times) - 1, model, make)


@torch.no_grad()
def in_batches(
    n: int,
    batch_size: int,
    steps: int,
    model: LatentDiffusion,
    make: Callable[[slice, Progress], Tensor],
) -> Float[Tensor, "b 3 h w"]:
    """n pictures, `make(part, progress)` a batch, in [-1, 1] on the CPU, under one bar of n times `steps`."""
    device, images = next(model.denoiser.parameters()).device, []
    bar = tqdm(total=n * steps, desc=f"{n} pictures", unit="step")
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


def save(
    images: Float[Tensor, "b 3 h w"],
    wanted: Sequence[tuple[str, int]],
    cfg: DictConfig,
    header: dict[str, str],
    names: Sequence[str] | None = None,
) -> None:
    """One PNG a picture, its making inside as text, and `grid.png` with a row a prompt.

    The files are named after the prompt's number and the seed where there are no `names`.
    """
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    rows, making = dict[str, list[Image.Image]](), _making(cfg, header)
    for i, (image, (prompt, seed)) in enumerate(zip(images, wanted, strict=True)):
        info = PngInfo()
        info.add_text("prompt", prompt)
        info.add_text("parameters", json.dumps(making | {"prompt": prompt, "seed": seed}))
        picture = to_pil(image)
        name = f"{i // cfg.n:04d}_{seed:06d}" if names is None else names[i]
        picture.save(out / f"{name}.png", pnginfo=info)
        rows.setdefault(prompt, []).append(picture)
    labelled_grid(list(rows.items()), cfg.grid_scale).save(out / "grid.png")
    print(f"wrote {len(images)} pictures and {out / 'grid.png'}")


def _making(cfg: DictConfig, header: dict[str, str]) -> dict[str, Any]:
    """What all pictures of a call have in common."""
    return {
        "negative": cfg.negative,
        "steps": cfg.steps,
        "scale": cfg.scale,
        "guidance": cfg.guidance._target_,
        "weak": cfg.weak,
        "sampler": cfg.sampler._target_,
        "task": OmegaConf.to_container(cfg.task),
        "also": OmegaConf.to_container(cfg.also),
        "original_size": cfg.original_size and list(cfg.original_size),
        "crop": list(cfg.crop),
        "aesthetic": cfg.aesthetic,
        "ckpt": str(cfg.ckpt),
        "trained_steps": header.get("step"),
    }
