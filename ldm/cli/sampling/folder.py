"""The folder of sample.py's images: never an input overwritten, never samples of different settings mixed."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from PIL import Image

from ldm.cli.config.validate import check_writable
from ldm.cli.training import run_config
from ldm.errors import UserError

DEFAULT = "samples"
DEFAULT_NAME = re.compile(rf"{DEFAULT}(-[1-9]\d*)?")
SETTINGS_FILE, GRID_FILE = "samples.json", "grid.png"
SAMPLE_NAME = re.compile(r"\d{4,}_(\d{6,}|[01]\.\d{3})\.png")
NOT_SETTINGS = ("out", "overwrite", "batch_size", "device", "tile", "grid_scale")
"""Keys that do not change the images, up to rounding."""
INPUTS = ("ckpt", "weak", "prompts", "task.", "also.")
"""Beginnings of the keys that may name a file; the file's content counts as the setting, not its path."""


class SampleFolder:
    """A folder that holds, or will hold, the samples of a command and their settings in `samples.json`.

    UserError if `out` holds samples of other settings, unless `overwrite` says to delete those. Without
    `out`, the folder is samples, samples-2, ...: the one with these settings, or else the first free one.
    """

    def __init__(self, cfg: DictConfig) -> None:
        config = dict(run_config.flatten(run_config.to_dict(cfg)))
        self.out, self.overwrite = config["out"], config["overwrite"]
        self.inputs = dict(_input_files(config))
        hashes = {key: f"sha256 {_hash(path)}" for key, path in self.inputs.items()}
        settings = {k: v for k, v in (config | hashes).items() if k not in NOT_SETTINGS}
        self.settings = json.loads(json.dumps(settings))  # as read from a file: with lists for tuples
        self.path = self._choose()

    def claim(self) -> None:
        """Create the folder with its settings, and delete the samples of other ones if `overwrite` is set."""
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            saved = read_settings(self.path)
            if saved == self.settings:
                return
            if saved is not None and self.overwrite:
                for file in [*_samples(self.path), self.path / SETTINGS_FILE]:
                    file.unlink(missing_ok=True)
            try:
                _create(self.path / SETTINGS_FILE, json.dumps(self.settings, indent=1))
                return
            except FileExistsError:  # another command began at the same time
                self.path = self._choose()

    def _choose(self) -> Path:
        """Return the folder; UserError if it cannot be used."""
        if self.out is None and self.overwrite:
            raise UserError("overwrite=true needs out=FOLDER, the folder whose samples it deletes")
        out = _choose_default(self.settings) if self.out is None else self.out
        check_writable(out, "out")
        path = Path(out)
        saved = read_settings(path)
        if saved is None or saved == self.settings:
            return path
        if not saved and not (self.overwrite and all(map(_was_sampled, _samples(path)))):
            raise UserError(
                f"out={path} has images, but no {SETTINGS_FILE} that says how they were sampled: choose "
                "another out=FOLDER, or set overwrite=true to delete them if sample.py wrote them all"
            )
        if not self.overwrite:
            keys = [k for k in {**self.settings, **saved} if saved.get(k) != self.settings.get(k)]
            raise UserError(
                f"out={path} holds samples of other settings ({', '.join(keys[:4])}): choose another "
                "out=FOLDER, or set overwrite=true to delete them"
            )
        doomed = {file.resolve() for file in _samples(path)}
        for key, file in self.inputs.items():
            if Path(file).resolve() in doomed:
                raise UserError(
                    f"{key}={file} is one of the samples that overwrite=true deletes: choose another "
                    "out=FOLDER"
                )
        return path


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings of a folder's samples; empty if it does not state them, None without samples."""
    try:
        settings = json.loads((folder / SETTINGS_FILE).read_text("utf-8"))
    except FileNotFoundError:
        return {} if any(_samples(folder)) else None
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _create(path: Path, content: str) -> None:
    """Write a file that does not exist; FileExistsError if it does."""
    with path.open("x", encoding="utf-8") as file:
        try:
            file.write(content)
            file.flush()
        except OSError:  # the disk is full
            path.unlink()
            raise


def _choose_default(settings: Mapping[str, Any]) -> str:
    """Return the folder of these settings among samples, samples-2, ..., or else the first free one."""
    folders = [path for path in Path().glob(f"{DEFAULT}*") if DEFAULT_NAME.fullmatch(path.name)]
    for path in folders:
        if path.is_dir() and read_settings(path) == settings:
            return path.name
    names = (DEFAULT if i == 1 else f"{DEFAULT}-{i}" for i in count(1))
    taken = {path.name for path in folders if path.is_file() or read_settings(path) is not None}
    return next(name for name in names if name not in taken)


def _samples(folder: Path) -> Iterator[Path]:
    """Yield a folder's images that have the names of samples or of their grid."""
    for path in folder.glob("*.png"):
        if SAMPLE_NAME.fullmatch(path.name) or path.name == GRID_FILE:
            yield path


def _was_sampled(path: Path) -> bool:
    """Return whether sample.py wrote an image: with its settings, except in the grid."""
    if path.name == GRID_FILE:
        return True
    with Image.open(path) as image:
        return "parameters" in image.info


def _input_files(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield key and path of every file that the command reads."""
    for key, value in config.items():
        if key.startswith(INPUTS) and isinstance(value, str) and _is_file(value):
            yield key, value


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a prompt is too long for a path, or has a NUL
        return False


def _hash(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
