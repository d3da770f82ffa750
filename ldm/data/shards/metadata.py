"""The values of a sample's `.json`, where each may be missing or malformed without spoiling the others."""

import json
import math
from collections.abc import Mapping
from typing import Any


def parse_json(text: bytes) -> Mapping[str, Any]:
    """Return a JSON object; an empty one where the text is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_number(metadata: Mapping[str, Any], name: str) -> float | None:
    """Return a finite number, or the one written as text, since a CSV file has nothing else.

    Returns None where it is missing, NaN, infinite or of another kind, such as `true`.
    """
    value = metadata.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):  # not a number, or an integer beyond the range of float
        return None
    return number if math.isfinite(number) else None
