import json
import math
import uuid
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from ldm.data.prepare.encode_record import EncodedImage, EncodedRecord
from ldm.data.prepare.sample_json import sample_json, to_json
from ldm.data.sources import SkippedRecord
from ldm.data.sources.text import NOT_UTF8


def encoded(caption: str = "a cat", **metadata: Any) -> EncodedRecord:
    return EncodedRecord(EncodedImage("jpg", b"", (1, 1), (1, 1), False), caption, metadata, {})


def test_the_key_and_the_caption_are_those_of_the_sample() -> None:
    item = encoded("緑", width=5)
    item.metadata |= {"key": "x", "caption": "y"}
    text, left_out = sample_json("7", item)
    assert json.loads(text) == {"key": "7", "caption": "緑", "width": 5} and not left_out
    assert "緑".encode() in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, value) for value in (None, True, 5, 10**40, 0.5, "a", [], {})),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (Decimal("2.50"), 2.5),
        (date(2020, 1, 2), "2020-01-02"),
        (datetime(2020, 1, 2, 3), "2020-01-02T03:00:00"),
        (time(3, 4), "03:04:00"),
        (timedelta(minutes=1, milliseconds=500), 60.5),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (({1: (date(2020, 1, 2),)}, {2}), [{"1": ["2020-01-02"]}, [2]]),
    ],
)
def test_values_become_those_of_json(value: object, expected: object) -> None:
    result = to_json(value)
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    "value",
    [
        *(math.nan, math.inf, -math.inf, np.float32("nan"), Decimal("nan"), Decimal("sNaN"), b"png"),
        *(10 ** Decimal(400), object(), [0, [math.nan]], {"a": b""}, np.zeros(2)),
    ],
)
def test_values_that_json_lacks_are_left_out_and_named(value: object) -> None:
    text, left_out = sample_json("7", encoded(score=value, boxes=[1]))
    assert json.loads(text) == {"key": "7", "caption": "a cat", "boxes": [1]} and left_out == ["score"]


@pytest.mark.parametrize("item", [encoded("\ud800"), encoded(a="\udce9"), encoded(a=[{"\udce9": 1}])])
def test_text_that_is_no_unicode_costs_the_sample(item: EncodedRecord) -> None:
    item.metadata["name"] = "a.jpg"
    with pytest.raises(SkippedRecord) as skipped:
        sample_json("7", item)
    assert (skipped.value.reason, skipped.value.name) == (NOT_UTF8, "a.jpg")
