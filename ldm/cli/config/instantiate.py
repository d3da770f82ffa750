"""Configs become objects: freely for the user's own, and from classes of `ldm` alone for a file's."""

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

import hydra.utils

from ldm.errors import UserError

_CLASS = re.compile(r"ldm(\.[a-z][a-z0-9_]*)+\.[A-Z][A-Za-z0-9]*")


def instantiate(config: Any) -> Any:
    """The object that a config of the user's own names; its lists and dicts arrive as plain Python ones."""
    return hydra.utils.instantiate(config, _convert_="all")


def build_untrusted(config: Mapping[str, Any]) -> Any:
    """The object that a config read from a file names, every `_target_` of it a class defined in `ldm`.

    The whole config is checked before anything is built, and Hydra has no part in it: its `instantiate` would
    call any function that can be imported. Raises UserError naming the target that is refused.
    """
    _check(config)
    return _make(config)


def _check(node: Any) -> None:
    if isinstance(node, Mapping):
        special = sorted(str(k) for k in node if str(k).startswith("_") and k != "_target_")
        if special:
            raise UserError(f"the file's config is refused: no file needs the key '{special[0]}'")
        if "_target_" in node:
            _check_target(node)
    for child in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        _check(child)


def _check_target(node: Mapping[str, Any]) -> None:
    """Raises UserError unless the node's target is a class of ours that takes the node's arguments."""
    cls = _resolve(node["_target_"])
    try:
        inspect.signature(cls).bind(**{str(k): v for k, v in node.items() if k != "_target_"})
    except TypeError as error:
        target = node["_target_"]
        raise UserError(
            f"the file's config does not fit {target} ({error}): another version wrote it"
        ) from error


def _resolve(target: Any) -> type:
    """The class, provided that its name is `ldm.module.Class` and that a module of `ldm` defines it."""
    refusal = UserError(f"the file's config is refused: its _target_ {target!r} is no class defined in ldm")
    if not isinstance(target, str) or not _CLASS.fullmatch(target):
        raise refusal
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise refusal from error
    if not isinstance(found, type) or not found.__module__.startswith("ldm."):
        raise refusal
    return found


def _make(node: Any) -> Any:
    if isinstance(node, Mapping):
        made = {key: _make(value) for key, value in node.items() if key != "_target_"}
        return _resolve(node["_target_"])(**made) if "_target_" in node else made
    return [_make(child) for child in node] if isinstance(node, list) else node
