import pytest

from ldm.data.sources.json_rows import read_json_lines, read_json_list
from ldm.errors import UserError


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_only_line_feeds_end_a_line(separator: str) -> None:
    text = f'{{"caption": "one{separator}two"}}\n\n{{"caption": "three"}}'
    assert [row["caption"] for row in read_json_lines(text, "t")] == [f"one{separator}two", "three"]


@pytest.mark.parametrize("line", ["[1]", "{", "5", "null", '"a"', "{'a': 1}", "[" * 100_000, '[["a", 1]]'])
def test_a_line_that_is_no_object_is_rejected(line: str) -> None:
    with pytest.raises(UserError, match="^line 3 of t.jsonl is not a JSON object .*: fix or remove it$"):
        read_json_lines(f'{{"a": 1}}\n\n{line}\n', "t.jsonl")


def test_a_list_of_objects() -> None:
    assert read_json_list('[{"path": "a"},\n {"path": "b"}]', "t.json") == [{"path": "a"}, {"path": "b"}]
    assert read_json_list("[]", "t.json") == []


@pytest.mark.parametrize("text", ["", '{"a": 1}', "[1]", "[" * 100_000, '{"a": 1}\n{"a": 2}'])
def test_anything_else_is_rejected(text: str) -> None:
    with pytest.raises(UserError, match=r"t.json is not a list of JSON objects \(.*one object per line"):
        read_json_list(text, "t.json")
