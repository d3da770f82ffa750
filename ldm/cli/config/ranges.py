"""Check every value of a config against the type of the argument that it sets, before anything is built.

The types of our classes and functions state their ranges (`ldm.typing.Range`); `COMMANDS` and `LIBRARIES`
state those of keys that are no arguments of ours.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from ldm.cli.config.key_types import COMMANDS, LIBRARIES
from ldm.errors import UserError
from ldm.typing import Length, Range

Value: TypeAlias = tuple[str, Any, Any, bool]
"""The key, value and type of an argument, and whether the value is interpolated from another key."""


def check_ranges(command: str, raw: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
    """Raise UserError for a value that is not of its argument's type or range; the shortest key comes first.

    Args:
        command: the name of the command's config, such as "train".
        raw: the config as plain types, in which interpolations are strings.
        resolved: the same with its interpolations resolved.
    """
    values = sorted(typed_values(command, raw, resolved), key=lambda v: (v[3], v[0].count(".")))
    for key, value, hint, _ in values:
        if not accepts(hint, value):
            raise UserError(f"{key} must be {describe(hint)}, not {_show(value)}{_advice(hint, value)}")


def typed_values(command: str, raw: Mapping[str, Any], resolved: Mapping[str, Any]) -> Iterator[Value]:
    """Yield every value of a config whose type is known, and all other floats, which must be finite."""
    hints = COMMANDS.get(command, {})
    yield from _arguments("", hints, raw, resolved)
    for key, node in raw.items():
        yield from _walk(key, node, resolved[key])


def _walk(key: str, raw: Any, resolved: Any) -> Iterator[Value]:
    """Yield the arguments of a node and of the nodes in it; an interpolated node is checked at its source."""
    if isinstance(raw, Mapping):
        target = raw.get("_target_")
        hints = argument_types(target) if isinstance(target, str) else {}
        yield from _arguments(f"{key}.", hints, raw, resolved)
        for name, child in raw.items():
            if not isinstance(resolved[name], Mapping) or isinstance(child, Mapping):
                yield from _walk(f"{key}.{name}", child, resolved[name])
    elif isinstance(raw, list):
        for i, child in enumerate(raw):
            yield from _walk(f"{key}.{i}", child, resolved[i])


def _arguments(
    prefix: str, hints: Mapping[str, Any], raw: Mapping[str, Any], resolved: Mapping[str, Any]
) -> Iterator[Value]:
    for name, value in raw.items():
        hint = hints.get(name, float if isinstance(resolved[name], float) else None)
        if hint is not None and value != "???":
            is_interpolated = isinstance(value, str) and value.startswith("${")
            yield f"{prefix}{name}", resolved[name], hint, is_interpolated


@cache
def argument_types(target: str) -> dict[str, Any]:
    """Return the types of the arguments of the class or function `target`; empty if there is none."""
    if not target.startswith("ldm."):
        return LIBRARIES.get(target, {})
    try:
        called: Callable[..., Any] = resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return {}  # reported when it is built
    function = called.__init__ if inspect.isclass(called) else called
    return {k: v for k, v in get_type_hints(function, include_extras=True).items() if k != "return"}


def accepts(hint: Any, value: Any) -> bool:
    """Return whether a config's value fits a type; types that no plain value can have accept everything."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return accepts(args[0], value) and all(_is_within(limits, value) for limits in args[1:])
    if origin in (Union, UnionType):
        return any(accepts(arg, value) for arg in args)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint in (int, bool, NoneType):
        return type(value) is hint
    if hint is str:
        return isinstance(value, str)
    if origin is Literal:
        return value in args
    if origin is Sequence or origin in (list, tuple):
        return isinstance(value, list) and all(accepts(args[0], item) for item in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(accepts(args[1], item) for item in value.values())
    return not isinstance(value, int | float)


def _is_within(limits: Range | Length, value: Any) -> bool:
    return limits.least <= (len(value) if isinstance(limits, Length) else value) <= limits.most


def describe(hint: Any, plural: bool = False) -> str:
    """Return a type in words: "a whole number in 1..1000, or null"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated and isinstance(args[1], Range):
        return f"{describe(args[0], plural)} {_interval(args[1])}"
    if origin is Annotated:
        least, most = args[1].least, args[1].most
        number = f"{least}" if least == most else f"{least} to {most}"
        return f"a list of {number} {describe(get_args(args[0])[0], plural=True)}"
    if origin in (Union, UnionType):
        return ", or ".join(describe(arg, plural) for arg in args)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin is Sequence or origin in (list, tuple):
        return f"{'lists' if plural else 'a list'} of {describe(args[0], plural=True)}"
    if origin is Mapping:
        return f"{describe(args[1], plural=True)} by name, as in {{NAME: 1}}"
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", NoneType: "null"}
    name = names.get(hint, "object with a _target_")
    if hint in (bool, str, NoneType):
        return name
    return f"{name}s" if plural else f"an {name}" if name[0] == "o" else f"a {name}"


def _interval(limits: Range) -> str:
    return "in {}..{}".format(*(int(x) if float(x).is_integer() else x for x in (limits.least, limits.most)))


def _show(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _advice(hint: Any, value: Any) -> str:
    """Return how to write a whole number that was given as a float."""
    if isinstance(value, float) and value.is_integer() and accepts(hint, int(value)):
        return f": write {int(value)}"
    return ""
