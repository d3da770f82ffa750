"""The `.json` of a packed sample: its caption and metadata as plain JSON."""

import json
import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from numbers import Integral, Real
from typing import Any
from uuid import UUID

from ldm.data.prepare.encode_record import EncodedRecord
from ldm.data.sources.record import SkippedRecord
from ldm.data.sources.text import NOT_UTF8


def sample_json(key: str, item: EncodedRecord) -> tuple[bytes, list[str]]:
    """Return the json of a sample, and the names of the metadata left out of it.

    JSON cannot store NaN, infinity and bytes. Raises SkippedRecord for text that is not Unicode.
    """
    fields, left_out = {"key": key, "caption": item.caption}, list[str]()
    for name, value in item.metadata.items():
        try:
            fields.setdefault(name, to_json(value))
        except ValueError:
            left_out.append(name)
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False).encode(), left_out
    except UnicodeEncodeError as error:
        raise SkippedRecord(NOT_UTF8, str(item.metadata.get("name", key))) from error


def to_json(value: Any) -> Any:
    """Return a value as JSON's types: ISO 8601 for dates and times, seconds for durations.

    Raises ValueError for NaN, infinity, bytes and any other type, also inside a list or an object.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real | Decimal):
        if not math.isfinite(number := float(value)):
            raise ValueError(f"{value} is not finite")
        return number
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [to_json(item) for item in value]
    raise ValueError(f"{type(value).__name__} is no type of JSON")
