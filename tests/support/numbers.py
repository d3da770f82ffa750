"""Every numeric argument of the classes and functions that configs name, and the limits of its type."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from omegaconf import OmegaConf

from ldm.cli.config.compose import CONFIGS
from ldm.cli.config.key_types import COMMANDS, LIBRARIES
from ldm.cli.config.ranges import argument_types, describe
from ldm.typing import Length, Range


@cache
def targets() -> list[str]:
    """Return every `_target_` of the shipped configs."""
    found: set[str] = set()
    for path in CONFIGS.rglob("*.yaml"):
        found |= set(_targets(OmegaConf.to_container(OmegaConf.load(path))))
    return sorted(found)


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict) and "_target_" in node:
        yield node["_target_"]
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _targets(child)


@cache
def arguments() -> dict[tuple[str, str], Any]:
    """Return the type of each numeric argument, by target and name, and of each command's numeric key."""
    types = {target: argument_types(target) for target in targets()} | LIBRARIES | COMMANDS
    return {(t, name): hint for t, hints in types.items() for name, hint in hints.items() if is_numeric(hint)}


def is_numeric(hint: Any) -> bool:
    """Return whether values of a type are numbers, or lists or mappings of numbers."""
    if get_origin(hint) in (Annotated, Union, UnionType, Sequence, Mapping, list, tuple):
        return any(is_numeric(arg) for arg in get_args(hint) if not isinstance(arg, Range | Length))
    return hint in (int, float)


def bounds(hint: Any) -> Iterator[Range | None]:
    """Yield the range of each number in a type; None for one without."""
    if get_origin(hint) is Annotated and get_args(hint)[0] in (int, float):
        yield get_args(hint)[1]
    elif get_args(hint):
        for arg in get_args(hint):
            if not isinstance(arg, Length):
                yield from bounds(arg)
    elif hint in (int, float):
        yield None


def limits(hint: Any) -> list[Any]:
    """Return the least and most value of a numeric type, in lists of the least length, and null."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated and args[0] is int:
        return [int(args[1].least), int(args[1].most)]
    if origin is Annotated and args[0] is float:
        return [float(args[1].least), float(args[1].most)]
    if origin is Annotated:
        return [value * args[1].least for value in limits(args[0])]
    if origin in (Union, UnionType):
        return [value for arg in args if is_numeric(arg) or arg is NoneType for value in limits(arg)]
    if origin in (Sequence, list, tuple):
        return [[value] for value in limits(args[0])]
    if origin is Mapping:
        return [{"name": value} for value in limits(args[1])]
    return [None]


def wrong(hint: Any) -> list[Any]:
    """Return values that a numeric type must not accept."""
    values: list[Any] = [float("nan"), float("inf"), -float("inf"), True, "text"]
    values += [] if type(None) in get_args(hint) else [None]
    for bound in bounds(hint):
        if bound is not None:
            values += [bound.least - abs(bound.least) - 1, 2 * abs(bound.most) + 1]
    if all(bound is not None for bound in bounds(hint)) and "float" not in str(hint):
        values += [1.5, 1.0, 2**63]
    return [*values, 1e30, *([[v] for v in values] if "Sequence" in str(hint) else [])]


PAGE = CONFIGS.parent / "docs" / "guide" / "ranges.md"
HEADER = """# Ranges of the numbers in the configs

The numbers that each class, function and command takes, with the least and the most. A value outside ends
the command before any work with one sentence that names the key. The ranges are in the types of the
arguments, those of commands, optimizers and the trainer in `ldm/cli/config/key_types.py`. Some numbers also
depend on each other, such as `sigma_min < sigma_max`; their class refuses what does not fit.

This page is generated: do not edit it, but run `python -m tests.support.numbers`.
"""


def build_page() -> str:
    """Return the page of all ranges."""
    rows = [
        f"| `{'' if target in COMMANDS else target.rpartition('.')[2] + '.'}{name}` | {describe(hint)} |"
        for (target, name), hint in arguments().items()
        if all(bound is not None for bound in bounds(hint)) and target not in COMMANDS
    ]
    parts = [HEADER, "## Classes and functions\n", TABLE + "\n".join(dict.fromkeys(rows)) + "\n"]
    for command, hints in COMMANDS.items():
        keys = [f"| `{name}` | {describe(hint)} |" for name, hint in hints.items() if is_numeric(hint)]
        parts += [f"## {command}\n", TABLE + "\n".join(keys) + "\n"]
    return "\n".join(parts)


TABLE = "| key | value |\n|---|---|\n"

if __name__ == "__main__":
    PAGE.write_text(build_page())
