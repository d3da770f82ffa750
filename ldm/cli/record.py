"""A run's configuration beside its numbers: `config.yaml`, for the user, W&B and `ldm.cli.compare`."""

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import ldm

FILE = "config.yaml"
EVERY_RUN = ("name", "run", "resume", "code")
"""Differ from run to run or from start to start, and say nothing."""


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The whole configuration as plain types, and the version of the code."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {**{str(key): value for key, value in plain.items()}, "code": code_version()}


def code_version() -> str:
    """The commit that runs, with a + where files differ from it; unknown outside of a checkout."""
    folder = Path(ldm.__path__[0]).parent
    try:
        words = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def write(config: Mapping[str, Any], run: Path) -> list[str]:
    """Keep `config` in the run's folder; what a run that goes on has changed, as `key: before -> now`."""
    before = read(run)
    run.mkdir(parents=True, exist_ok=True)
    (run / FILE).write_text("# as the run was last started\n" + OmegaConf.to_yaml(config))
    return [f"{key}: {old} -> {new}" for key, old, new in differences(before, config)] if before else []


def read(run: Path) -> dict[str, Any]:
    """What `write` kept; nothing where there is none."""
    if not (run / FILE).is_file():
        return {}
    kept = OmegaConf.to_container(OmegaConf.load(run / FILE))
    assert isinstance(kept, dict)
    return {str(key): value for key, value in kept.items()}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Key and both values wherever two configurations differ, but for what differs in every run.

    Of a setting that is interpolated elsewhere only the shortest path is named: optimizer.lr, and not
    stage.optimizer.lr.
    """
    left, right = dict(_portable(a)), dict(_portable(b))
    keys = [key for key in {**left, **right} if key not in EVERY_RUN and left.get(key) != right.get(key)]
    named: dict[tuple[str, str, str], str] = {}
    for key in sorted(keys, key=len):
        named.setdefault((key.rpartition(".")[2], repr(left.get(key)), repr(right.get(key))), key)
    return [(key, left.get(key), right.get(key)) for key in keys if key in named.values()]


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key's path and value."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _portable(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """`flat` without the run's own folder and name in the values."""
    run, name = str(config.get("run")), config.get("name")
    for key, value in flat(config):
        if isinstance(value, str):
            value = "${name}" if value == name else value.replace(run, "${run}")
        yield key, value
