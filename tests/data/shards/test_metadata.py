import pytest

from ldm.data.shards.metadata import parse_json, read_number


@pytest.mark.parametrize("text", [b"", b"[1]", b"3", b"half {", b"\xff\xfe", b"[" * 100_000, b'"\xe9"'])
def test_what_is_not_an_object_is_an_empty_one(text: bytes) -> None:
    assert parse_json(text) == {}


def test_an_object() -> None:
    assert parse_json('{"größe": NaN, "b": [1]}'.encode()).keys() == {"größe", "b"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5", 5.0),
        ("-0.5", -0.5),
        ('"5.5"', 5.5),
        ('" 5e3\\n"', 5000.0),
        ("null", None),
        ("true", None),
        ("false", None),
        ("NaN", None),
        ("-Infinity", None),
        ("1e999", None),
        ("1" + 400 * "0", None),
        ('"nan"', None),
        ('"high"', None),
        ('""', None),
        ("[5]", None),
        ("{}", None),
    ],
)
def test_numbers(text: str, number: float | None) -> None:
    assert read_number(parse_json(f'{{"score": {text}}}'.encode()), "score") == number
    assert read_number({}, "score") is None
