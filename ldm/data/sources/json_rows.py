"""Rows of a JSON file: one object per line, or a list of objects."""

import json
from typing import Any

from ldm.data.sources.text import is_unicode
from ldm.errors import UserError


def read_json_lines(text: str, file: str) -> list[dict[str, Any]]:
    """Return one object per line that is not blank; raise UserError for the first that is none."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # JSON allows the other line separators in a text
        if not line.strip():
            continue
        try:
            rows.append(_check_object(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"line {number} of {file} is not a JSON object ({error}): {_advise(line, 'fix or remove it')}"
            ) from error
    return rows


def read_json_list(text: str, file: str) -> list[dict[str, Any]]:
    """Return the objects of a list; raise UserError for anything else."""
    try:
        rows = json.loads(text)
        if not isinstance(rows, list):
            raise ValueError(f"it holds a {type(rows).__name__}")
        return [_check_object(row) for row in rows]
    except (ValueError, RecursionError) as error:
        advice = _advise(text, "fix it, or save one object per line as .jsonl")
        raise UserError(f"{file} is not a list of JSON objects ({error}): {advice}") from error


def _check_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.20} is not one")
    return value


def _advise(text: str, advice: str) -> str:
    """Return the advice, or what to do about text that is not UTF-8; Shift JIS has backslashes in it."""
    return advice if is_unicode(text) else "set source.encoding=NAME, or save it as UTF-8"
