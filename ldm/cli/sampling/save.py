"""Write samples as PNGs as they are made, with their settings in text chunks, and a labelled grid."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ldm.atomic import write_atomically
from ldm.cli.sampling.batches import sample_batches, split_into_batches
from ldm.cli.sampling.folder import GRID_FILE, SampleFolder
from ldm.cli.sampling.plan import SamplingPlan
from ldm.grid import labelled_grid, to_pil, write_png
from ldm.model import LatentDiffusion

RECORDED_KEYS = ("negative", "steps", "scale", "weak", "task", "also", "original_size", "crop", "aesthetic",
    "negative_aesthetic", "prompt_chunks", "prompt_weights")  # fmt: skip
"""Config keys of sample.py whose values are saved unchanged in every PNG."""
GRID_COLUMNS, GRID_IMAGES_PER_PROMPT, GRID_IMAGES, GRID_PIXELS = 8, 32, 256, 2**26
"""The most images per row of the grid, per prompt and in all, and pixels, above which images are reduced."""
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
"""The last bytes of a complete PNG."""


def save_samples(
    plan: SamplingPlan, model: LatentDiffusion, folder: SampleFolder, cfg: DictConfig, header: dict[str, str]
) -> None:
    """Sample the images that the folder lacks, write each batch when it is made, then the grid.

    A batch is sampled as a whole even if some of its images exist, as their rounding may depend on it.
    """
    n, settings = len(plan.names), _settings(cfg, header)
    missing = {i for i, name in enumerate(plan.names) if not _is_complete(folder.path / f"{name}.png")}
    kept = n - len(missing)
    batches = [b for b in split_into_batches(n, cfg.batch_size) if missing & set(range(b.start, b.stop))]
    try:
        for part, x in sample_batches(model, n, batches, plan.steps, plan.trajectory):
            folder.claim()
            images = zip(range(part.start, part.stop), plan.postprocess(x), strict=True)
            for i, image in images:
                if i in missing:
                    title, seed = plan.titles_and_seeds[i]
                    parameters = settings | {"prompt": title, "seed": seed}
                    _write(folder.path / f"{plan.names[i]}.png", image, parameters)
                    missing.remove(i)
    except (KeyboardInterrupt, SystemExit):  # SIGTERM is a SystemExit here
        print(f"{n - len(missing):,} of {n:,} images are in {folder.path}: the same command makes the rest")
        raise
    grid = _save_grid(plan, folder.path, cfg.grid_scale) if cfg.grid_scale else ""
    before = f" (the other {kept:,} were there)" if kept else ""
    print(f"wrote {n - kept:,} of {n:,} images{before} to {folder.path}{grid}")


def _is_complete(path: Path) -> bool:
    """Return whether a PNG has been written to its end."""
    if not path.is_file() or path.stat().st_size < len(PNG_END):
        return False
    with path.open("rb") as file:
        file.seek(-len(PNG_END), 2)
        return file.read() == PNG_END


def _write(path: Path, x: Tensor, parameters: dict[str, Any]) -> None:
    info = PngInfo()
    info.add_text("prompt", parameters["prompt"])
    info.add_text("parameters", json.dumps(parameters))
    # Not flushed to disk one by one: after a power failure, what is incomplete is made again.
    with write_atomically(path, sync_file=False) as temporary:
        to_pil(x).save(temporary, "PNG", pnginfo=info)


def _save_grid(plan: SamplingPlan, folder: Path, scale: int) -> str:
    """Write the grid, each title with a bounded number of its images; return what it shows."""
    images = dict[str, list[str]]()
    for (title, _), name in zip(plan.titles_and_seeds, plan.names, strict=True):
        images.setdefault(title, []).append(name)
    most = max(map(len, images.values()))
    limit = min(most, GRID_IMAGES_PER_PROMPT)
    shown = list(islice(images.items(), GRID_IMAGES // limit))
    columns = min(most, GRID_COLUMNS)
    rows = [
        (title if start == 0 else "", names[:limit][start : start + columns])
        for title, names in shown
        for start in range(0, len(names[:limit]), columns)
    ]
    size, scale = _fit(folder / f"{plan.names[0]}.png", columns * len(rows), scale)
    opened = [(label, [_open(folder / f"{name}.png", size) for name in names]) for label, names in rows]
    write_png(folder / GRID_FILE, labelled_grid(opened, scale))
    limits = {"images per prompt": (limit, most), "prompts": (len(shown), len(images))}
    parts = [f"the first {few} of {all_:,} {what}" for what, (few, all_) in limits.items() if few < all_]
    return f", and {GRID_FILE}" + (f" with {' and '.join(parts)}" if parts else "")


def _fit(path: Path, n: int, scale: int) -> tuple[tuple[int, int], int]:
    """Return (width, height) of each of n images in the grid, and the scale by which it enlarges them."""
    with Image.open(path) as image:
        width, height = image.size
    pixels = n * width * height * scale**2
    if pixels <= GRID_PIXELS:
        return (width, height), scale
    factor = scale * (GRID_PIXELS / pixels) ** 0.5
    return (max(1, int(width * factor)), max(1, int(height * factor))), 1


def _open(path: Path, size: tuple[int, int]) -> Image.Image:
    with Image.open(path) as image:
        return image.resize(size, Image.Resampling.LANCZOS)


def _settings(cfg: DictConfig, header: dict[str, str]) -> dict[str, Any]:
    """Return the settings that are the same for all images of a command."""
    values: Any = OmegaConf.to_container(cfg)
    return {key: values[key] for key in RECORDED_KEYS} | {
        "guidance": cfg.guidance._target_,
        "sampler": cfg.sampler._target_,
        "ckpt": str(cfg.ckpt),
        "trained_steps": header.get("step"),
    }
