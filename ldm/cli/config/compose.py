"""Compose configs/ with a command line's overrides; every mistake in them becomes one sentence."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ldm.cli.config.hydra_private import apply_overrides
from ldm.cli.config.messages import hint, list_options, nearest, one_line
from ldm.cli.config.overrides import parse
from ldm.cli.config.paths import check_local_paths
from ldm.cli.config.ranges import check_ranges
from ldm.errors import UserError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
STRENGTH = {"guidance": "scale"}
"""For a group that users may confuse with a number, the key of that number."""


def compose(
    name: str, overrides: Sequence[str], configs: Path = CONFIGS, complete: bool = True
) -> DictConfig:
    """Return the config `configs/<name>.yaml` with `overrides`, all its interpolations resolvable.

    Args:
        complete: refuse a config in which a required key (`???`) has no value.

    Raises UserError, in one sentence, for whatever is wrong with the overrides or with a config they name.
    """
    with _hydra(configs):
        parsed = _parse(with_search_path(overrides, configs))
        _refuse_sweeps(parsed)
        values = [override for override in parsed if not _is_structural(override)]
        cfg = _load(name, [override for override in parsed if override not in values])
        defaults = {override.key_or_group: _select(cfg, override.key_or_group) for override in values}
        try:
            apply_overrides(values, cfg)
        except ConfigCompositionException as error:
            raise UserError(_explain(error, name, parsed)) from error
        _check_types(defaults, cfg)
        return _finish(name, cfg, configs, complete)


def choices(name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS) -> dict[str, str | None]:
    """Return the chosen option of each config group of a command; "???" where the user must choose."""
    with _hydra(configs):
        return _choices(_load(name, _parse(with_search_path(overrides, configs)), skip_missing=True))


def required_keys(name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS) -> dict[str, str]:
    """Return the keys that still need a value, each with the comment beside its `???`."""
    with _hydra(configs):
        cfg = _load(name, _parse(with_search_path(overrides, configs)), skip_missing=True)
        return _required(cfg, configs)


def options(group: str, configs: Path = CONFIGS) -> list[str]:
    """Return the options of a config group, those in its folders as folder/name."""
    with _hydra(configs):
        return _options(group)


def sweep_points(overrides: Sequence[str], configs: Path = CONFIGS) -> list[list[str]]:
    """Return a few lists of plain overrides that together hold every value of every swept override."""
    with _hydra(configs):
        columns = [_swept_values(override) for override in _parse(overrides)]
    columns = [column for column in columns if column]
    return [[c[i % len(c)] for c in columns] for i in range(max(map(len, columns), default=1))]


def with_search_path(overrides: Sequence[str], configs: Path) -> list[str]:
    """Return the overrides, with one that finds in configs/ the groups that another folder lacks."""
    if configs == CONFIGS or any(text.startswith("hydra.searchpath=") for text in overrides):
        return list(overrides)
    return [*overrides, f"hydra.searchpath=['file://{CONFIGS}']"]


def _parse(overrides: Sequence[str]) -> list[Override]:
    return parse(overrides, _loader())


def _hydra(configs: Path) -> AbstractContextManager:
    return initialize_config_dir(str(configs), version_base="1.3")


def _loader() -> ConfigLoader:
    return GlobalHydra.instance().config_loader()


def _load(name: str, parsed: Sequence[Override], skip_missing: bool = False) -> DictConfig:
    mode = RunMode.MULTIRUN if skip_missing else RunMode.RUN  # Hydra's way to leave a group `???`
    try:
        return _loader().load_configuration(name, [str(o.input_line) for o in parsed], mode)
    except MissingConfigException as error:
        raise UserError(_missing_option(error)) from error
    except ConfigCompositionException as error:
        raise UserError(_explain(error, name, parsed)) from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"cannot read a config file: {one_line(error)}") from error
    except ValueError as error:
        if (message := _number_for_group(parsed)) is None:
            raise
        raise UserError(message) from error


def _missing_option(error: MissingConfigException) -> str:
    path = error.missing_cfg_file or ""
    groups = [str(parent) for parent in PurePosixPath(path).parents][:-1]
    group = next((g for g in reversed(groups) if _options(g)), groups[0] if groups else "")
    if not group:
        return f"no config '{path}': {one_line(error)}"
    name, names = path.removeprefix(f"{group}/"), _options(group)
    return f"no {group} '{name}';{hint(name, names)} {list_options(names)}"


def _number_for_group(parsed: Sequence[Override]) -> str | None:
    """Explain a number, a boolean or null where a config group needs the name of an option."""
    for override in parsed:
        key = override.key_or_group
        if _options(key) and not isinstance(override.value(), str | list):
            hint = f"; its strength is {STRENGTH[key]}={override.value()}" if key in STRENGTH else ""
            names = ", ".join(_options(key))
            return f"'{override.input_line}': {key} is a config group, choose one of {names}{hint}"
    return None


def _explain(error: ConfigCompositionException, name: str, parsed: Sequence[Override]) -> str:
    text = str(error)
    if match := re.search(r"You must specify '(.+?)'", text):
        return f"{match[1]} is required: give {match[1]}=..., one of {', '.join(_options(match[1]))}"
    if match := re.search(r"Could not override '(.+?)'", text):
        if match[1].partition("@")[0] not in {o.key_or_group for o in parsed}:
            return _incompatible(match[1], parsed)
        return _unknown(match[1], name, parsed)
    if isinstance(error.__cause__, OmegaConfBaseException):
        return f"{one_line(error)}: {one_line(error.__cause__)}".removeprefix(": ")
    return one_line(error)


def _incompatible(group: str, parsed: Sequence[Override]) -> str:
    """Explain options that exclude each other, such as an experiment of one stage and the other stage."""
    chosen = [str(o.input_line) for o in parsed if _options(o.key_or_group)]
    if len(chosen) == 1:
        return f"{chosen[0]} overrides {group}, which is not in its defaults: correct that file"
    return (
        f"{' and '.join(chosen)} cannot be combined: one of them sets {group}, which the others do not have; "
        "remove one"
    )


def _unknown(key: str, name: str, parsed: Sequence[Override]) -> str:
    if "@" in key:
        group, _, package = key.partition("@")
        return f"no {package} to override: write +{key}=..., one of {', '.join(_options(group)) or 'none'}"
    base = _load(name, [o for o in parsed if _options(o.key_or_group) and o.key_or_group != key])
    groups = sorted(_choices(base))
    if _options(key) or "/" in key:
        near = hint(key, groups)
        return f"no config group '{key}' in this command's config;{near} its groups: {', '.join(groups)}"
    names = [*(path for path, _ in _flat(base)), *groups]
    parent, _, leaf = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in names if parent and k.rpartition(".")[0] == parent}
    if not siblings:
        near = hint(key, names)
    elif alike := nearest(leaf, siblings):  # whole paths would resemble each other by their common parent
        near = f" nearest: {', '.join(siblings[k] for k in alike)};"
    else:
        near = f" keys of {parent}: {', '.join(siblings)};"
    return f"no key '{key}';{near} --cfg job lists every key"


def _refuse_sweeps(parsed: Sequence[Override]) -> None:
    for override in parsed:
        if override.is_sweep_override():
            key, _, value = str(override.input_line).partition("=")
            raise UserError(
                f"'{override.input_line}' is a sweep: write {key}=[{value}] for a list, \"{key}='{value}'\" "
                "for a string, or add -m to run one job per value"
            )


def _is_structural(override: Override) -> bool:
    """Return whether an override chooses config files, or is for Hydra, rather than sets a value."""
    key = override.key_or_group
    if key.partition("/")[0].partition(".")[0] == "hydra":
        return True
    is_group = override.package is not None or "/" in key or ("." not in key and bool(_options(key)))
    return is_group and not isinstance(override.value(), dict)


def _check_types(defaults: Mapping[str, Any], cfg: DictConfig) -> None:
    """Refuse a string where the config had a number or a boolean; 'auto' is always accepted."""
    for key, default in sorted(defaults.items()):
        value = _select(cfg, key)
        if not isinstance(value, str) or value == "auto":
            continue
        if isinstance(default, bool):
            example = f"{key}={str(default).lower()}"
            raise UserError(f"{key} must be true or false, not '{value}': for example {example}")
        if isinstance(default, int | float):
            raise UserError(f"{key} must be a number, not '{value}': for example {key}={default}")


def _finish(name: str, cfg: DictConfig, configs: Path, complete: bool) -> DictConfig:
    """Return `cfg` without Hydra's own node, after trying every interpolation."""
    missing = _required(cfg, configs)
    if missing and complete:
        key, about = next(iter(missing.items()))
        raise UserError(f"{key} is required{f' ({about})' if about else ''}: give {key}=...")
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir, cfg.hydra.job.num, cfg.hydra.job.id = ".", 0, "0"
        HydraConfig.instance().set_config(cfg)  # for interpolations like ${hydra:job.num}
        del cfg["hydra"]
    try:
        check_local_paths(_plain(cfg))
        if not missing:
            check_ranges(name, _plain(cfg), _plain(cfg, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"cannot resolve the config's key '{error.full_key}': {one_line(error)}") from error
    finally:
        HydraConfig.instance().cfg = None
    return cfg


def _required(cfg: DictConfig, configs: Path) -> dict[str, str]:
    chosen = [f"{group.partition('@')[0]}/{option}" for group, option in _choices(cfg).items()]
    files = [
        folder / f"{name}.yaml"
        for name in [cfg.hydra.job.config_name, *chosen]
        for folder in {configs, CONFIGS}
    ]
    lines = [line for file in files if file.is_file() for line in file.read_text().splitlines()]
    about_by_key = {}
    for key in sorted(key for key, value in _flat(cfg) if value == "???"):
        pattern = re.compile(rf"\s*{re.escape(key.rpartition('.')[2])}:\s*\?\?\?\s*#\s*(.+?)\s*")
        about = {m[1] for line in lines if (m := pattern.fullmatch(line))}
        about_by_key[key] = about.pop() if len(about) == 1 else ""
    return about_by_key


def _swept_values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        return []
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _options(group: str) -> list[str]:
    names = list(_loader().get_group_options(group))
    for folder in _loader().list_groups(group):
        names += [f"{folder}/{name}" for name in _options(f"{group}/{folder}")]
    return names


def _choices(cfg: DictConfig) -> dict[str, str | None]:
    chosen = OmegaConf.to_container(cfg.hydra.runtime.choices)
    assert isinstance(chosen, dict)
    return {str(group): option for group, option in chosen.items() if not str(group).startswith("hydra/")}


def _select(cfg: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None


def _flat(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield path and value of every key but Hydra's own; a missing value is "???"."""
    plain = _plain(cfg)
    del plain["hydra"]

    def walk(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            yield f"{prefix}{key}", value
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{key}.")

    yield from walk(plain, "")


def _plain(cfg: DictConfig, resolve: bool = False) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(cfg, resolve=resolve)
    return plain
