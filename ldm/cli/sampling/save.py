"""Save samples as PNGs with their settings in text chunks, and as a labelled grid."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ldm.grid import labelled_grid, to_pil

RECORDED_KEYS = ("negative", "steps", "scale", "weak", "task", "also", "original_size", "crop", "aesthetic",
    "negative_aesthetic")  # fmt: skip
"""Config keys of sample.py whose values are saved unchanged in every PNG."""


@dataclass(frozen=True)
class Samples:
    """Images in [-1, 1] on the CPU, with their titles, seeds and file names (without the suffix)."""

    images: Float[Tensor, "b c h w"]
    titles_and_seeds: Sequence[tuple[str, int]]
    names: Sequence[str]


def save_samples(samples: Samples, cfg: DictConfig, header: dict[str, str]) -> None:
    """Write a PNG per image, with title, seed and settings as text, and `grid.png`, one row per title."""
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    rows, settings = dict[str, list[Image.Image]](), _settings(cfg, header)
    for x, (title, seed), name in zip(samples.images, samples.titles_and_seeds, samples.names, strict=True):
        info = PngInfo()
        info.add_text("prompt", title)
        info.add_text("parameters", json.dumps(settings | {"prompt": title, "seed": seed}))
        image = to_pil(x)
        image.save(out / f"{name}.png", pnginfo=info)
        rows.setdefault(title, []).append(image)
    labelled_grid(list(rows.items()), cfg.grid_scale).save(out / "grid.png")
    print(f"wrote {len(samples.images)} images and {out / 'grid.png'}")


def _settings(cfg: DictConfig, header: dict[str, str]) -> dict[str, Any]:
    """Return the settings that are the same for all images of a command."""
    values: Any = OmegaConf.to_container(cfg)
    return {key: values[key] for key in RECORDED_KEYS} | {
        "guidance": cfg.guidance._target_,
        "sampler": cfg.sampler._target_,
        "ckpt": str(cfg.ckpt),
        "trained_steps": header.get("step"),
    }
