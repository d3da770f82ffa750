"""Save samples as PNGs that carry their settings, and as a labelled grid."""

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

RECORDED = ("negative", "steps", "scale", "weak", "task", "also", "original_size", "crop", "aesthetic",
    "negative_aesthetic")  # fmt: skip
"""The keys of sample.py that every PNG records as they were given."""


@dataclass(frozen=True)
class Samples:
    """Images in [-1, 1] on the CPU; (prompt, seed) of each; the names of their files."""

    images: Float[Tensor, "b c h w"]
    specs: Sequence[tuple[str, int]]
    names: Sequence[str]


def save_samples(samples: Samples, cfg: DictConfig, header: dict[str, str]) -> None:
    """Write a PNG per image, its prompt, seed and settings inside, and `grid.png`, a row per prompt."""
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    rows, settings = dict[str, list[Image.Image]](), _settings(cfg, header)
    for x, (prompt, seed), name in zip(samples.images, samples.specs, samples.names, strict=True):
        info = PngInfo()
        info.add_text("prompt", prompt)
        info.add_text("parameters", json.dumps(settings | {"prompt": prompt, "seed": seed}))
        image = to_pil(x)
        image.save(out / f"{name}.png", pnginfo=info)
        rows.setdefault(prompt, []).append(image)
    labelled_grid(list(rows.items()), cfg.grid_scale).save(out / "grid.png")
    print(f"wrote {len(samples.images)} images and {out / 'grid.png'}")


def _settings(cfg: DictConfig, header: dict[str, str]) -> dict[str, Any]:
    """Return the settings that all images of a call share."""
    values: Any = OmegaConf.to_container(cfg)
    return {key: values[key] for key in RECORDED} | {
        "guidance": cfg.guidance._target_,
        "sampler": cfg.sampler._target_,
        "ckpt": str(cfg.ckpt),
        "trained_steps": header.get("step"),
    }
