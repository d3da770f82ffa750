"""Parts of error messages: the nearest names, an exception's text in one line."""

import difflib
import re
from collections.abc import Iterable, Sequence

MANY = 25
"""More options than an error message should list."""


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return at most three of `names` that resemble `name`, as a whole or in the last part of a path."""
    names = list(dict.fromkeys(names))
    whole = difflib.get_close_matches(name, names, n=3)
    leaf = name.rpartition(".")[2]
    leaves = difflib.get_close_matches(leaf, {n.rpartition(".")[2] for n in names}, n=3, cutoff=0.75)
    return list(dict.fromkeys(whole + [n for x in leaves for n in names if n.rpartition(".")[2] == x]))[:3]


def list_options(names: Sequence[str]) -> str:
    """Return the options as a clause of an error message; many are left to --help."""
    return f"--help lists all {len(names)}" if len(names) > MANY else f"all: {', '.join(names) or 'none'}"


def hint(name: str, names: Iterable[str]) -> str:
    """Return the nearest names as a clause of an error message; an empty string if none is near."""
    near = nearest(name, names)
    return f" nearest: {', '.join(near)};" if near else ""


def one_line(error: BaseException) -> str:
    """Return an exception's text as one line, without OmegaConf's appendix."""
    text = re.split(r"\n\s*(?:full_key|object_type|reference_type):", str(error))[0]
    return " ".join(text.split()).rstrip(".")
