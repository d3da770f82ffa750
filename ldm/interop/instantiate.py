"""Objects built from the config in a file's header, which may come from anyone.

Hydra's `instantiate` calls any function that can be imported (`os.system`, `pathlib.Path.write_text`), so a
config that came with a file never reaches it: only classes defined in `ldm` are built.
"""

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

from ldm.errors import UserError

_CLASS = re.compile(r"ldm(\.[a-z][a-z0-9_]*)+\.[A-Z][A-Za-z0-9]*")


def build_untrusted(config: Mapping[str, Any]) -> Any:
    """Build the object that a file's config describes; each `_target_` must be a class defined in `ldm`.

    The whole config is checked before anything is built. Raises UserError naming the target or key refused.
    """
    _check(config)
    return _build(config)


def _check(node: Any) -> None:
    """Check all targets and keys of a config, at any depth."""
    if isinstance(node, Mapping):
        special = sorted(str(k) for k in node if str(k).startswith("_") and k != "_target_")
        if special:
            raise UserError(f"the file's config is refused: its key '{special[0]}' is not allowed in a file")
        if "_target_" in node:
            _check_target(node)
    for child in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        _check(child)


def _check_target(node: Mapping[str, Any]) -> None:
    """Raise UserError unless the node's target is a class of `ldm` that accepts the node's arguments."""
    cls = _find_class(node["_target_"])
    try:
        inspect.signature(cls).bind(**{str(k): v for k, v in node.items() if k != "_target_"})
    except TypeError as error:
        target = node["_target_"]
        raise UserError(
            f"the file's config does not fit {target} ({error}): another version of ldm wrote the file, "
            "use that version or train again"
        ) from error


def _find_class(target: Any) -> type:
    """Return the class named `ldm.module.Class`; UserError unless a module of `ldm` defines it."""
    refusal = UserError(
        f"the file's config is refused: its _target_ {target!r} is not a class defined in ldm"
    )
    if not isinstance(target, str) or not _CLASS.fullmatch(target):
        raise refusal
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise refusal from error
    if not isinstance(cls, type) or not cls.__module__.startswith("ldm."):
        raise refusal
    return cls


def _build(node: Any) -> Any:
    if isinstance(node, Mapping):
        values = {key: _build(value) for key, value in node.items() if key != "_target_"}
        return _find_class(node["_target_"])(**values) if "_target_" in node else values
    return [_build(child) for child in node] if isinstance(node, list) else node
