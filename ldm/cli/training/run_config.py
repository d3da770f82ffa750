"""The resolved config of a run, in its `config.yaml`: for the user, for W&B and for `ldm.cli.compare`."""

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import ldm

FILE = "config.yaml"
NOT_SETTINGS = ("name", "run", "resume", "code")
"""Keys that differ between runs, or between starts of a run, without changing the training."""


def to_dict(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain Python types, with its interpolations resolved."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def resolve_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the whole config as plain types, and the version of the code."""
    return {**to_dict(cfg), "code": code_version()}


def code_version() -> str:
    """Return the current commit, with a + if files differ from it; "unknown" outside of a checkout."""
    folder = Path(ldm.__path__[0]).parent
    try:
        words = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def write(config: Mapping[str, Any], run: Path) -> list[str]:
    """Save `config` in the run's folder; return what a resumed run has changed, as `key: before -> now`."""
    before = read(run)
    run.mkdir(parents=True, exist_ok=True)
    (run / FILE).write_text("# as the run was last started\n" + OmegaConf.to_yaml(config))
    return [f"{key}: {old} -> {new}" for key, old, new in differences(before, config)] if before else []


def read(run: Path) -> dict[str, Any]:
    """Return the config that `write` saved; empty if there is none."""
    if not (run / FILE).is_file():
        return {}
    config = OmegaConf.load(run / FILE)
    assert isinstance(config, DictConfig)
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return key and both values wherever two configs differ, without NOT_SETTINGS.

    A node that only one of them has is one difference, named by its class, rather than one per number. Of a
    setting that is interpolated elsewhere only the shortest path is listed: optimizer.lr, not
    stage.optimizer.lr.
    """
    different = [d for d in _differences(_without_run(a, a), _without_run(b, b)) if d[0] not in NOT_SETTINGS]
    shortest: dict[tuple[str, str, str], str] = {}
    for key, left, right in sorted(different, key=lambda d: len(d[0])):
        shortest.setdefault((key.rpartition(".")[2], repr(left), repr(right)), key)
    return [d for d in different if d[0] in shortest.values()]


def flatten(config: Mapping[str, Any], prefix: str = "", nodes: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield every key's path and value; with `nodes` also the nodes, each with the name of its class."""
    for key, value in config.items():
        if nodes or not isinstance(value, Mapping):
            yield f"{prefix}{key}", _class_name(value)
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.", nodes)


def _differences(
    a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in {**a, **b}:
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            yield f"{prefix}{key}", _class_name(left), _class_name(right)


def _class_name(value: Any) -> Any:
    """Return the name of a node's class; any other value as it is."""
    return str(value.get("_target_", "...")).rpartition(".")[2] if isinstance(value, Mapping) else value


def _without_run(value: Any, config: Mapping[str, Any]) -> Any:
    """Return a value with the run's own folder and name replaced by ${run} and ${name}."""
    if isinstance(value, Mapping):
        return {key: _without_run(child, config) for key, child in value.items()}
    if isinstance(value, str):
        return "${name}" if value == config.get("name") else value.replace(str(config.get("run")), "${run}")
    return value
