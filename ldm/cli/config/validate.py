"""Checks of single config values: numbers, sizes, folders."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ldm.errors import UserError

MIN_INTEGER = {"n": 1, "steps": 1, "seed": 0, "batch_size": 1, "grid_scale": 1}
"""Minimum of each integer in sample.py's config."""


def check_sampling(cfg: DictConfig) -> None:
    """Raise UserError for a mistake in sample.py's config that shows before a model is loaded."""
    for key, minimum in MIN_INTEGER.items():
        check_integer(key, cfg[key], minimum)
    for key in ("scale", "aesthetic"):
        check_finite(key, cfg[key])
    if cfg.negative_aesthetic is not None:
        check_finite("negative_aesthetic", cfg.negative_aesthetic)
    for key in ("size", "original_size"):
        if cfg[key] is not None:
            parse_pixels(key, cfg[key], 1)
    parse_pixels("crop", cfg.crop, 0)
    check_guidance_scales(cfg.guidance)
    if not OmegaConf.is_dict(cfg.also):
        raise UserError(f"also={cfg.also} needs a name for the condition: write +task@also.NAME={cfg.also}")
    check_writable(cfg.out, "out")


def check_integer(key: str, value: Any, minimum: int) -> None:
    """Raise UserError unless a value is an integer of at least `minimum`."""
    if not isinstance(value, int) or isinstance(value, bool):
        hint = f": write {value:.0f}" if isinstance(value, float) and value.is_integer() else ""
        raise UserError(f"{key} must be a whole number, not {'null' if value is None else value}{hint}")
    if value < minimum:
        raise UserError(f"{key} must be {minimum} or more, not {value}")


def check_finite(key: str, value: Any) -> None:
    """Raise UserError unless a value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{key} must be a finite number, not {'null' if value is None else value}")


def parse_pixels(key: str, value: Any, minimum: int) -> tuple[int, int]:
    """Return (height, width) of a size, which one number gives for a square, or (top, left) of a crop."""
    is_size = key.endswith("size")
    pair = [value, value] if is_size and type(value) is int else value
    valid = (
        isinstance(pair, Sequence) and len(pair) == 2 and all(type(v) is int and v >= minimum for v in pair)
    )
    if not valid:
        shown = list(value) if isinstance(value, list | ListConfig) else value
        names = "[height, width]" if is_size else "[top, left]"
        square = f", or {key}=64 for a square" if is_size else ""
        raise UserError(
            f"{key}={shown}: expected {names} in pixels, two whole numbers of {minimum} or more, for example "
            f"{key}=[64,96]{square}"
        )
    return pair[0], pair[1]


def check_guidance_scales(guidance: DictConfig) -> None:
    """Raise UserError if guidance.scales is set, but not to a mapping from conditions to numbers."""
    scales = guidance.get("scales")
    if scales is None:
        return
    if not OmegaConf.is_dict(scales):
        raise UserError(
            f"guidance.scales={scales} names no condition: give a number for each, for example "
            '"guidance.scales={depth: 1.5}"; scale=... applies to all others'
        )
    for name, value in scales.items():
        check_finite(f"guidance.scales.{name}", value)


def check_writable(path: str | None, key: str = "run") -> None:
    """Raise UserError if a folder, or a file in it, cannot be written; no file is left behind."""
    if not path:
        raise UserError(f"{key} is empty: give a folder, for example {key}=runs/NAME")
    existing = nearest_existing_path(Path(path))
    existing = existing.parent if existing.is_file() and key.endswith(".path") else existing
    if not existing.is_dir():
        raise UserError(f"{key}={path} cannot be created, since {existing} is a file: choose another folder")
    try:
        tempfile.TemporaryFile(dir=existing).close()  # os.access returns True for root even in /proc
    except OSError as error:
        raise UserError(
            f"{key}={path} cannot be created, since {existing} is not writable ({error.strerror}): choose "
            "another folder"
        ) from error


def nearest_existing_path(path: Path) -> Path:
    """Return the path if it exists, else its nearest existing parent folder."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())
