"""Composing configs/ under a command line's overrides; every mistake in them becomes one sentence."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ldm.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STRENGTH = {"guidance": "scale"}
"""The key of a group's number, for those who give the number to the group."""


def compose(
    name: str, overrides: Sequence[str], configs: Path = CONFIGS, complete: bool = True
) -> DictConfig:
    """The config `name` under `overrides`, its interpolations resolvable and, if `complete`, no value absent.

    Raises UserError, in one sentence, for whatever is wrong with the overrides or with a config they name.
    """
    with initialize_config_dir(str(configs), version_base="1.3"):
        parsed = parse(overrides)
        cfg = _compose(name, parsed)
        _check_types(name, parsed, cfg)
        return _finished(cfg, configs, complete)


def choices(name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS) -> dict[str, str | None]:
    """The command's config groups and the option each has under `overrides`; "???" where it must be given."""
    with initialize_config_dir(str(configs), version_base="1.3"):
        return _choices(_compose(name, parse(overrides), skip_missing=True))


def needed(name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS) -> dict[str, str]:
    """The keys without a value under `overrides`, and what each is: the comment beside its `???`."""
    with initialize_config_dir(str(configs), version_base="1.3"):
        return _needed(_compose(name, parse(overrides), skip_missing=True), configs)


def options(group: str, configs: Path = CONFIGS) -> list[str]:
    """The names a config group offers."""
    with initialize_config_dir(str(configs), version_base="1.3"):
        return _options(group)


def sweep_points(overrides: Sequence[str], configs: Path = CONFIGS) -> list[list[str]]:
    """Few lists of plain overrides in which every value of every swept override stands at least once."""
    with initialize_config_dir(str(configs), version_base="1.3"):
        columns = [_values(o) for o in parse(overrides)]
    columns = [c for c in columns if c]
    return [[c[i % len(c)] for c in columns] for i in range(max(map(len, columns), default=1))]


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """At most three of `names` that `name` may have meant: alike as a whole or in the last part."""
    names = list(dict.fromkeys(names))
    whole = difflib.get_close_matches(name, names, n=3)
    leaf = name.rpartition(".")[2]
    leaves = difflib.get_close_matches(leaf, {n.rpartition(".")[2] for n in names}, n=3, cutoff=0.75)
    return list(dict.fromkeys(whole + [n for x in leaves for n in names if n.rpartition(".")[2] == x]))[:3]


def parse(overrides: Sequence[str]) -> list[Override]:
    """Hydra's reading of `overrides`; needs an initialised Hydra."""
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise UserError(f"'{text}' is not an override: write key=value, for example {text}=...")
    try:
        return OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise UserError(
            f"cannot read the override '{error.override}': close its quotes and brackets, and quote the whole"
            " for the shell, for example \"prompts=['a red circle, left']\""
        ) from error


def _compose(name: str, parsed: Sequence[Override], skip_missing: bool = False) -> DictConfig:
    loader = GlobalHydra.instance().config_loader()
    mode = RunMode.MULTIRUN if skip_missing else RunMode.RUN  # Hydra's way to leave a group `???`
    try:
        return loader.load_configuration(name, [str(o.input_line) for o in parsed], mode)
    except MissingConfigException as error:
        raise UserError(_missing_option(error)) from error
    except ConfigCompositionException as error:
        raise UserError(_refused(error, name, parsed)) from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"a config file cannot be read: {_line(error)}") from error
    except ValueError as error:
        if (sentence := _no_option(parsed)) is None:
            raise
        raise UserError(sentence) from error


def _missing_option(error: MissingConfigException) -> str:
    path = PurePosixPath(error.missing_cfg_file or "")
    group, name = str(path.parent), path.name
    if group == ".":
        return f"no config '{name}': {_line(error)}"
    names = _options(group)
    return f"no {group} '{name}';{_nearest(name, names)} all: {', '.join(names) or 'none'}"


def _no_option(parsed: Sequence[Override]) -> str | None:
    """For a number, a switch or null in the place of a config group's option."""
    for override in parsed:
        key = override.key_or_group
        if _options(key) and not isinstance(override.value(), str | list):
            also = f"; its strength is {STRENGTH[key]}={override.value()}" if key in STRENGTH else ""
            names = ", ".join(_options(key))
            return f"'{override.input_line}': {key} is a config group, one of {names}{also}"
    return None


def _refused(error: ConfigCompositionException, name: str, parsed: Sequence[Override]) -> str:
    text = str(error)
    if match := re.search(r"You must specify '(.+?)'", text):
        return f"say which {match[1]}: {match[1]}=..., one of {', '.join(_options(match[1]))}"
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'(?:\n| requires)", text):
        key, _, value = match[1].partition("=")
        return (
            f"'{match[1]}' holds a sweep: write {key}=[{value}] for a list, \"{key}='{value}'\" for a text,"
            " or add -m to run one job a value"
        )
    if match := re.search(r"Could not override '(.+?)'", text):
        if match[1].partition("@")[0] not in {o.key_or_group for o in parsed}:
            return _apart(match[1], parsed)
        return _unknown(match[1], name, parsed)
    if isinstance(error.__cause__, OmegaConfBaseException):
        return f"{_line(error)}: {_line(error.__cause__)}".removeprefix(": ")
    return _line(error)


def _apart(group: str, parsed: Sequence[Override]) -> str:
    """For options that do not go together, as an experiment of one stage and the other stage."""
    given = [str(o.input_line) for o in parsed if _options(o.key_or_group)]
    if len(given) == 1:
        return f"{given[0]} overrides {group}, which nothing in its defaults has: mend that file"
    return (
        f"{' and '.join(given)} do not go together: one of them sets {group}, which the others do not have; "
        "leave one out"
    )


def _unknown(key: str, name: str, parsed: Sequence[Override]) -> str:
    if "@" in key:
        group, _, place = key.partition("@")
        return f"there is no {place} yet: write +{key}=..., one of {', '.join(_options(group)) or 'none'}"
    base = _compose(name, [o for o in parsed if _options(o.key_or_group) and o.key_or_group != key])
    groups = sorted(_choices(base))
    if _options(key) or "/" in key:
        near = _nearest(key, groups)
        return f"no config group '{key}' in this command's config;{near} its groups: {', '.join(groups)}"
    known = [*(k for k, _ in _nodes(base)), *groups]
    parent, _, leaf = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if parent and k.rpartition(".")[0] == parent}
    if not siblings:
        near = _nearest(key, known)
    elif alike := nearest(leaf, siblings):  # whole paths would be alike for their parent's sake
        near = f" nearest: {', '.join(siblings[k] for k in alike)};"
    else:
        near = f" keys of {parent}: {', '.join(siblings)};"
    return f"no key '{key}';{near} --cfg job lists every key"


def _check_types(name: str, parsed: Sequence[Override], cfg: DictConfig) -> None:
    """Refuses a word where the config has a number or a switch; 'auto' may stand anywhere."""
    words = {o.key_or_group for o in parsed if isinstance(_value(cfg, o.key_or_group), str)} - {"hydra"}
    words = {w for w in words if not _options(w) and not w.startswith("hydra") and _value(cfg, w) != "auto"}
    if not words:
        return
    base = _compose(name, [o for o in parsed if _options(o.key_or_group)])
    for key in sorted(words):
        was, now = _value(base, key), _value(cfg, key)
        if isinstance(was, bool):
            raise UserError(f"{key} is true or false, not '{now}': write {key}={str(was).lower()}, say")
        if isinstance(was, int | float):
            raise UserError(f"{key} is a number, not '{now}': write {key}={was}, say")


def _finished(cfg: DictConfig, configs: Path, complete: bool) -> DictConfig:
    """`cfg` without Hydra's own node, once every interpolation has been tried."""
    missing = _needed(cfg, configs)
    if missing and complete:
        key, about = next(iter(missing.items()))
        raise UserError(f"{key} is needed{f' ({about})' if about else ''}: give it as {key}=...")
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir, cfg.hydra.job.num, cfg.hydra.job.id = ".", 0, "0"
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    try:
        if not missing:
            OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the config's key '{error.full_key}' cannot be resolved: {_line(error)}") from error
    finally:
        HydraConfig.instance().cfg = None
    return cfg


def _needed(cfg: DictConfig, configs: Path) -> dict[str, str]:
    chosen = [f"{group.partition('@')[0]}/{option}" for group, option in _choices(cfg).items()]
    files = [configs / f"{name}.yaml" for name in [cfg.hydra.job.config_name, *chosen]]
    lines = [line for file in files if file.is_file() for line in file.read_text().splitlines()]
    found = {}
    for key in sorted(k for k, node in _nodes(cfg) if node._is_missing()):
        pattern = re.compile(rf"\s*{re.escape(key.rpartition('.')[2])}:\s*\?\?\?\s*#\s*(.+?)\s*")
        about = {m[1] for line in lines if (m := pattern.fullmatch(line))}
        found[key] = about.pop() if len(about) == 1 else ""
    return found


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        return []
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _options(group: str) -> list[str]:
    return list(GlobalHydra.instance().config_loader().get_group_options(group))


def _choices(cfg: DictConfig) -> dict[str, str | None]:
    chosen = OmegaConf.to_container(cfg.hydra.runtime.choices)
    assert isinstance(chosen, dict)
    return {str(group): option for group, option in chosen.items() if not str(group).startswith("hydra/")}


def _value(cfg: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None


def _nodes(parent: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key's path and node, Hydra's own left out; interpolations are not followed."""
    for key in parent:
        node = parent._get_node(key)
        if node is not None and (prefix or key != "hydra"):
            yield f"{prefix}{key!s}", node
            if isinstance(node, DictConfig) and not node._is_missing() and not node._is_interpolation():
                yield from _nodes(node, f"{prefix}{key!s}.") if not node._is_none() else ()


def _nearest(name: str, names: Iterable[str]) -> str:
    near = nearest(name, names)
    return f" nearest: {', '.join(near)};" if near else ""


def _line(error: BaseException) -> str:
    """An exception's text as one line, without OmegaConf's appendix."""
    text = re.split(r"\n\s*(?:full_key|object_type|reference_type):", str(error))[0]
    return " ".join(text.split()).rstrip(".")
