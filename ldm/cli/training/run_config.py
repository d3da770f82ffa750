"""The resolved config of a run, in its `config.yaml`: for the user, for W&B and for `ldm.cli.compare`."""

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import ldm
from ldm.atomic import write_file

FILE = "config.yaml"
NOT_SETTINGS = ("name", "run", "resume", "code", "allow_changes", "changes")
"""Keys that differ between runs, or between starts of a run, without changing the training."""


def to_dict(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain Python types, with its interpolations resolved."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def resolve_config(cfg: DictConfig, precision: str = "auto") -> dict[str, Any]:
    """Return the whole config as plain types, with `precision` for auto, and the version of the code."""
    config = {**to_dict(cfg), "code": code_version()}
    if config["trainer"]["precision"] == "auto":
        config["trainer"]["precision"] = precision
    return config


def code_version() -> str:
    """Return the current commit, with a + if files differ from it; "unknown" outside of a checkout."""
    folder = Path(ldm.__path__[0]).parent
    try:
        words = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def write(config: Mapping[str, Any], run: Path) -> None:
    """Save `config` in the run's folder."""
    write_file(run / FILE, "# as the run was last started\n" + OmegaConf.to_yaml(config))


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

    A node that only one of them has is one difference, named by its class, rather than one per number. A
    missing argument has its class's default. What `stage` and `data` copy from elsewhere is listed once:
    optimizer.lr, not also stage.optimizer.lr.
    """
    a, b = _without_run(a, a), _without_run(b, b)
    copied = {key: (a.get(key), b.get(key)) for key in {**a, **b}}
    return [d for d in _differences(a, b, copied) if d[0] not in NOT_SETTINGS]


def flatten(config: Mapping[str, Any], prefix: str = "", nodes: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield every key's path and value; with `nodes` also the nodes, each with the name of its class."""
    for key, value in config.items():
        if nodes or not isinstance(value, Mapping):
            yield f"{prefix}{key}", _class_name(value)
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.", nodes)


def format_setting(value: Any) -> str:
    """Return a setting as written on the command line."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')


def _differences(
    a: Mapping[str, Any], b: Mapping[str, Any], copied: Mapping[str, tuple[Any, Any]], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in {**a, **b}:
        left, right = _value(a, b, key), _value(b, a, key)
        if left == right or (prefix and _is_copy(key, left, right, copied)):
            continue
        nodes = _as_node(left), _as_node(right)
        if nodes[0] is not None and nodes[1] is not None:
            yield from _differences(nodes[0], nodes[1], copied, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _class_name(left), _class_name(right)


def _value(node: Mapping[str, Any], other: Mapping[str, Any], key: str) -> Any:
    """Return a node's value; of a missing argument its default, or what the other node has for it.

    The latter where the class has no such argument: another version of the code had it. Classes are only
    looked up among those imported, since a config may be anyone's.
    """
    if key in node:
        return node[key]
    module, _, name = str(node.get("_target_")).rpartition(".")
    built = getattr(sys.modules.get(module), name, None)
    if built is None:
        return None
    parameter = inspect.signature(built).parameters.get(key)
    if parameter is None:
        return other[key]
    if isinstance(parameter.default, tuple):
        return list(parameter.default)
    return None if parameter.default is parameter.empty else parameter.default


def _is_copy(key: str, left: Any, right: Any, copied: Mapping[str, tuple[Any, Any]]) -> bool:
    """Return whether this difference is that of a config group, or of a number with the same name."""
    is_node = isinstance(left, Mapping) or isinstance(right, Mapping)
    return any(pair == (left, right) and (is_node or name == key) for name, pair in copied.items())


def _as_node(value: Any) -> Mapping[str, Any] | None:
    """Return a node, or a list of nodes by index; None for any other value."""
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return {str(i): item for i, item in enumerate(value)}
    return value if isinstance(value, Mapping) else None


def _class_name(value: Any) -> Any:
    """Return the name of a node's class; any other value as it is."""
    if isinstance(value, list):
        return [_class_name(item) for item in value]
    return str(value.get("_target_", "...")).rpartition(".")[2] if isinstance(value, Mapping) else value


def _without_run(value: Any, config: Mapping[str, Any], key: str = "") -> Any:
    """Return a value with the run's own name, and its folder in a path, replaced by ${name} and ${run}."""
    if isinstance(value, Mapping):
        return {name: _without_run(child, config, name) for name, child in value.items()}
    if key == "name" and value == config.get("name"):
        return "${name}"
    run = str(config.get("run"))
    if isinstance(value, str) and (value == run or value.startswith(f"{run}/")):
        return f"${{run}}{value.removeprefix(run)}"
    return value
