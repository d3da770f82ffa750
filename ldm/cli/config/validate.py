"""What a command is asked for: numbers, sizes and folders, each mistake one sentence before work starts."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ldm.errors import UserError

WHOLE = {"n": 1, "steps": 1, "seed": 0, "batch_size": 1, "grid_scale": 1}
"""The least value of whole numbers that sample.py takes."""


def sampling(cfg: DictConfig) -> None:
    """UserError for whatever can be seen to be wrong in sample.py's settings alone."""
    for key, least in WHOLE.items():
        whole(key, cfg[key], least)
    for key in ("scale", "aesthetic"):
        finite(key, cfg[key])
    if cfg.negative_aesthetic is not None:
        finite("negative_aesthetic", cfg.negative_aesthetic)
    for key in ("size", "original_size"):
        if cfg[key] is not None:
            pixels(key, cfg[key], 1)
    pixels("crop", cfg.crop, 0)
    scales(cfg.guidance)
    if not OmegaConf.is_dict(cfg.also):
        raise UserError(f"also={cfg.also} names no condition: write +task@also.NAME={cfg.also}")
    folder(cfg.out, "out")


def whole(key: str, value: Any, least: int) -> None:
    """UserError unless a value is a whole number from `least` on."""
    if not isinstance(value, int) or isinstance(value, bool):
        also = f": write {value:.0f}" if isinstance(value, float) and value.is_integer() else ""
        raise UserError(f"{key} must be a whole number, not {'null' if value is None else value}{also}")
    if value < least:
        raise UserError(f"{key} must be {least} or more, not {value}")


def finite(key: str, value: Any) -> None:
    """UserError unless a value is a number, and a finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{key} must be a finite number, not {'null' if value is None else value}")


def pixels(key: str, value: Any, least: int) -> tuple[int, int]:
    """Two whole numbers, a size's height and width or a corner's top and left; of a size one is a square."""
    square = key.endswith("size")
    pair = [value, value] if square and type(value) is int else value
    good = isinstance(pair, Sequence) and len(pair) == 2 and all(type(v) is int and v >= least for v in pair)
    if not good:
        given = list(value) if isinstance(value, list | ListConfig) else value
        also = f", or {key}=64 for a square" if square else ""
        raise UserError(
            f"{key}={given} is no pair of pixels: give two whole numbers of {least} or more, as in "
            f"{key}=[64,96]{also}"
        )
    return pair[0], pair[1]


def scales(guidance: DictConfig) -> None:
    """UserError unless a guidance that has scales has a number for each name."""
    given = guidance.get("scales")
    if given is None:
        return
    if not OmegaConf.is_dict(given):
        raise UserError(
            f"guidance.scales={given} names no condition: give each its number, as in "
            '"guidance.scales={depth: 1.5}", and scale=... for all others'
        )
    for name, value in given.items():
        finite(f"guidance.scales.{name}", value)


def folder(path: str | None, key: str = "run") -> None:
    """UserError where a folder, or a file in it, cannot be written; nothing of the trial is left."""
    if not path:
        raise UserError(f"{key} is empty: give it a folder, as in {key}=runs/NAME")
    place = existing(Path(path))
    place = place.parent if place.is_file() and key.endswith(".path") else place
    if not place.is_dir():
        raise UserError(f"{key}={path} leads through {place}, which is a file: choose another folder")
    try:
        tempfile.TemporaryFile(dir=place).close()  # os.access says yes to root wherever it is asked
    except OSError as error:
        raise UserError(
            f"{key}={path} cannot be made, {place} is not writable ({error.strerror}): choose another folder"
        ) from error


def existing(path: Path) -> Path:
    """The path itself, or the nearest one above it that there is."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())
