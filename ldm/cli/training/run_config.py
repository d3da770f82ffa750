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


def resolve(cfg: DictConfig) -> dict[str, Any]:
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

    Where a node is there in one alone, it is one difference, named by its class, and not one a number. Of a
    setting that is interpolated elsewhere only the shortest path is named: optimizer.lr, and not
    stage.optimizer.lr.
    """
    found = [d for d in _apart(_portable(a, a), _portable(b, b)) if d[0] not in EVERY_RUN]
    named: dict[tuple[str, str, str], str] = {}
    for key, left, right in sorted(found, key=lambda d: len(d[0])):
        named.setdefault((key.rpartition(".")[2], repr(left), repr(right)), key)
    return [d for d in found if d[0] in named.values()]


def flat(config: Mapping[str, Any], prefix: str = "", nodes: bool = False) -> Iterator[tuple[str, Any]]:
    """Every key's path and value; with `nodes` also those that hold others, by their classes."""
    for key, value in config.items():
        if nodes or not isinstance(value, Mapping):
            yield f"{prefix}{key}", _brief(value)
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.", nodes)


def _apart(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in {**a, **b}:
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from _apart(left, right, f"{prefix}{key}.")
        elif left != right:
            yield f"{prefix}{key}", _brief(left), _brief(right)


def _brief(value: Any) -> Any:
    """A node by the name of its class."""
    return str(value.get("_target_", "...")).rpartition(".")[2] if isinstance(value, Mapping) else value


def _portable(value: Any, config: Mapping[str, Any]) -> Any:
    """A configuration without its run's own folder and name in the values."""
    if isinstance(value, Mapping):
        return {key: _portable(child, config) for key, child in value.items()}
    if isinstance(value, str):
        return "${name}" if value == config.get("name") else value.replace(str(config.get("run")), "${run}")
    return value
