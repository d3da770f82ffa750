"""Parse overrides with Hydra; quote what its grammar does not take, such as é or a second equals sign.

Hydra's unquoted values consist of ASCII letters, digits, spaces and a few signs. A value in which the user's
meaning is clear is quoted for Hydra; any other error names the character and shows what to type.
"""

import re
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from ldm.errors import UserError

PLAIN = re.compile(r"[A-Za-z0-9_/\-\\+.$%*@?|: \t]*")
"""An unquoted value."""
APOSTROPHE = re.compile(r"(?<=\w)'(?=\w)")
TOKEN = re.compile(
    rf"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[\[\]{{}},]|(?:[^\[\]{{}},'"]|{APOSTROPHE.pattern})+|.""",
    re.DOTALL,
)
"""In a list or mapping: a quoted string, a bracket, a brace, a comma or a bare word."""
PAIRS = (("[", "]"), ("{", "}"), ("(", ")"))


def parse(overrides: Sequence[str], loader: ConfigLoader) -> list[Override]:
    """Return the overrides as Hydra parses them; UserError for one whose meaning is not clear."""
    return OverridesParser.create(loader).parse_overrides([quote(text) for text in overrides])


def quote(text: str) -> str:
    """Return an override as Hydra can parse it; UserError if its meaning is not clear."""
    key, sign, value = text.partition("=")
    if not sign and not text.startswith("~"):
        raise UserError(f"'{text}' is not an override: write key=value, for example {text}=...")
    if value.startswith("~"):
        raise UserError(
            f"'{text}': the shell replaces ~ only at the start of a word, so write {key}=$HOME..."
        )
    words = _quote_items(value) if value.startswith(("[", "{")) else _quote_words(value)
    for candidate in (text, f"{key}={words}"):
        if _is_valid(candidate):
            return candidate
    raise UserError(f"cannot parse the override '{text}': {_explain(key, value)}")


def quote_value(value: str) -> str:
    """Return text as one quoted value of Hydra's grammar."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


def _is_valid(text: str) -> bool:
    try:
        OverridesParser.create().parse_override(text)
    except HydraException:
        return False
    return True


def _quote_words(value: str) -> str:
    """Quote the parts of a value without brackets where needed; commas separate the values of a sweep."""
    return ",".join(word if _is_open(word) else _quote_word(word) for word in value.split(","))


def _is_open(word: str) -> bool:
    """Return whether a word begins with a quote, or has a bracket or quote that is not closed."""
    is_unpaired = any(word.count(a) != word.count(b) for a, b in PAIRS)
    bare = APOSTROPHE.sub("", word)
    return is_unpaired or word.startswith(("'", '"')) or "'" in bare or bool(word.count('"') % 2)


def _quote_items(value: str) -> str:
    """Quote the words of a list or mapping where needed, but not the keys of a mapping, which cannot be."""
    tokens, opened, quoted = TOKEN.findall(value), "", ""
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        if token in "[{":
            opened += token
        elif token in "]}":
            opened = opened[:-1]
        elif token[0] in "'\"":
            is_key = opened.endswith("{") and following.lstrip().startswith(":")
            token = token[1:-1] if is_key else token
        elif opened.endswith("{"):
            key, colon, item = token.partition(":")
            token = f"{key}{colon}{_quote_word(item)}"
        else:
            token = _quote_word(token)
        quoted += token
    return quoted


def _quote_word(word: str) -> str:
    if PLAIN.fullmatch(word) or word == ",":
        return word
    bare = word.strip()
    return word.replace(bare, quote_value(bare))


def _explain(key: str, value: str) -> str:
    """Return what is wrong with an override, and what to type."""
    if wrong := re.search(r"[^\w./@:+~-]|[^\x00-\x7f]", key):
        return f"'{wrong[0]}' cannot be part of a key"
    if re.search("['\"]", value):
        advice = "close its quotes, and quote the whole for the shell, for example"
        return f"{advice} \"prompts=['a red circle, left']\""
    advice = f"""type '{key}="{value}"' if it is text"""
    for first, last in PAIRS:
        if value.count(first) != value.count(last):
            return f"its {first} and {last} do not match: close them, or {advice}"
    signs = [sign for sign in value if sign not in "[]{}," and not PLAIN.fullmatch(sign)]
    return f"'{signs[0]}' has another meaning there: {advice}" if signs else f"it has an empty part: {advice}"
