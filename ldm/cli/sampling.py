"""What sample.py and the evaluation do with a sampling file: load, draw, save."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from omegaconf import DictConfig, ListConfig
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from ldm.cli.build import build_untrusted
from ldm.errors import UserError
from ldm.grid import labelled_grid, to_pil
from ldm.interop import safetensors
from ldm.model import LatentDiffusion, Sampler
from ldm.typing import Batch


def read_prompts(prompts: str | ListConfig) -> list[str]:
    """A list of captions as it is, or the lines of a text file."""
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


def picture_size(cfg: DictConfig, header: dict[str, str]) -> tuple[int, int]:
    """(height, width) asked for, or the square that the model was trained at."""
    if cfg.size is None:
        return int(header["size"]), int(header["size"])
    height, width = cfg.size
    return height, width


def draw(
    model: LatentDiffusion,
    wanted: Sequence[tuple[str, int]],
    cfg: DictConfig,
    size: tuple[int, int],
    sampler: Sampler,
    times: Float[Tensor, " s"],
) -> Float[Tensor, "b 3 h w"]:
    """A picture of `size` (height, width) for each (prompt, seed), in [-1, 1] on the CPU."""
    device = next(model.denoiser.parameters()).device
    images = []
    bar = tqdm(total=len(wanted) * (len(times) - 1), desc=f"{len(wanted)} pictures", unit="step")
    for start in range(0, len(wanted), cfg.batch_size):
        part = wanted[start : start + cfg.batch_size]

        def progress(steps: Iterator[Tensor], n: int = len(part)) -> Iterator[Tensor]:
            yield next(steps)  # z_T, which cost no step
            for z in steps:
                bar.update(n)
                yield z

        batch: Batch = {"caption": [prompt for prompt, _ in part]}
        negative: Batch | None = (
            None if cfg.get("negative") is None else {"caption": [cfg.negative] * len(part)}
        )
        seeds = [seed for _, seed in part]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            drawn = model.generate(batch, seeds, size, sampler, times, cfg.guidance, negative, progress)
        images.append(drawn.float().cpu())
    bar.close()
    return torch.cat(images)


def save(
    images: Float[Tensor, "b 3 h w"],
    wanted: Sequence[tuple[str, int]],
    cfg: DictConfig,
    header: dict[str, str],
) -> None:
    """One PNG a picture, its making inside as text, and `grid.png` with a row a prompt."""
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Image.Image]] = {}
    for i, (image, (prompt, seed)) in enumerate(zip(images, wanted, strict=True)):
        making = {
            "prompt": prompt,
            "negative": cfg.negative,
            "seed": seed,
            "steps": cfg.steps,
            "guidance": cfg.guidance,
            "sampler": cfg.sampler._target_,
            "ckpt": str(cfg.ckpt),
            "trained_steps": header.get("step"),
        }
        info = PngInfo()
        info.add_text("prompt", prompt)
        info.add_text("parameters", json.dumps(making))
        picture = to_pil(image)
        picture.save(out / f"{i // cfg.n:04d}_{seed:06d}.png", pnginfo=info)
        rows.setdefault(prompt, []).append(picture)
    labelled_grid(list(rows.items()), cfg.grid_scale).save(out / "grid.png")
    print(f"wrote {len(images)} pictures and {out / 'grid.png'}")
