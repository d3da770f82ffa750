"""Checks of single config values that their types do not state: sizes and folders."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ldm.errors import UserError

MAX_PIXELS = 2**16
"""The largest height or width of a size condition, or of an image to sample."""


def check_sampling(cfg: DictConfig) -> None:
    """Raise UserError for a mistake in sample.py's config that shows before a model is loaded."""
    for key in ("size", "original_size"):
        if cfg[key] is not None:
            parse_pixels(key, cfg[key], 1)
    parse_pixels("crop", cfg.crop, 0)
    if not OmegaConf.is_dict(cfg.also):
        raise UserError(f"also={cfg.also} needs a name for the condition: write +task@also.NAME={cfg.also}")


def parse_pixels(key: str, value: Any, minimum: int) -> tuple[int, int]:
    """Return (height, width) of a size, which one number gives for a square, or (top, left) of a crop."""
    is_size = key.endswith("size")
    pair = [value, value] if is_size and type(value) is int else value
    valid = (
        isinstance(pair, Sequence)
        and len(pair) == 2
        and all(type(v) is int and minimum <= v <= MAX_PIXELS for v in pair)
    )
    if not valid:
        shown = list(value) if isinstance(value, list | ListConfig) else value
        names = "[height, width]" if is_size else "[top, left]"
        square = f", or {key}=64 for a square" if is_size else ""
        raise UserError(
            f"{key}={shown}: expected {names} in pixels, two whole numbers in {minimum}..{MAX_PIXELS}, for "
            f"example {key}=[64,96]{square}"
        )
    return pair[0], pair[1]


def check_writable(path: Any, key: str = "run") -> None:
    """Raise UserError if a folder, or a file in it, cannot be written; no file is left behind."""
    if path in (None, ""):
        raise UserError(f"{key} is empty: give a folder, for example {key}=runs/NAME")
    if not isinstance(path, str):
        raise UserError(f"{key}={path} is no path: give a folder, for example {key}=./{path}")
    try:
        existing = nearest_existing_path(Path(path))
    except OSError as error:
        raise UserError(f"{key}={path} cannot be a path ({error.strerror}): choose another one") from error
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
