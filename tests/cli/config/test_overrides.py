"""Overrides as users type them: Hydra gets what they meant, or one sentence says what to type."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ldm.cli.config.command import user_errors
from ldm.cli.config.compose import compose
from ldm.cli.config.overrides import quote
from ldm.errors import UserError

TEXT = [
    "été", "a=b", "a==b", "=", "runs/a=1_5", "photos (2)", "it's", "it's été", 'say "hi"', "a#b", "#",
    "a~b", "a!b", "a&b", "a;b", "a`b", "a^b", "a<b>", "日本語", "😀", "a\nb", "a\u2028b", "C:\\Users\\x",
    "C:\\Users\\été", "\\é\\", "http://x/a?b=c&d=e", "s3://bucket/é", "pipe:cat a.tar",
    "a/{00000..00009}.tar",     "é/{0..9}.tar", "a b", "$HOME/x", "a@b", "a%b", "a*b?",
    "-x", "--x", "a(b)", "a()", "",
]  # fmt: skip
"""Values that are text as they stand."""
VALUES: dict[str, Any] = {
    "[été]": ["été"],
    "[it's, a]": ["it's", "a"],
    "[\"a\", é, 'b, c']": ["a", "é", "b, c"],
    "[a, [b, é]]": ["a", ["b", "é"]],
    "[http://x/é?a=b]": ["http://x/é?a=b"],
    "{a: [é, {b: ü=1}], c: 2}": {"a": ["é", {"b": "ü=1"}], "c": 2},
    "{'json.long':3}": {"json.long": 3},
    "{txt:1,'json.long':3}": {"txt": 1, "json.long": 3},
    '{"txt": 1, "json.long": é}': {"txt": 1, "json.long": "é"},
    "'été'": "été",
    "3": 3,
    "[1,2.5,true,null]": [1, 2.5, True, None],
}
"""Lists, mappings and quoted text."""
REFUSED = {
    "out=[a": ["its [ and ] do not match", "'out=\"[a\"'"],
    "out=a]": ["[ and ]"],
    "out={a": ["{ and }"],
    "out=a)": ["( and )"],
    "out=['a]": ["close its quotes", "prompts=['a red circle, left']"],
    'out="a': ["close its quotes"],
    "out='a'b": ["close its quotes"],
    "out=rnage(1,3)": ["'('", "'out=\"rnage(1,3)\"'"],
    "out=[a,]": ["an empty part"],
    "out={é: 1}": ["'é'"],
    "out=~/x": ["~", "out=$HOME"],
    "öut=3": ["'ö' cannot be part of a key"],
    "a b=3": ["' ' cannot be part of a key"],
    "out": ["'out' is not an override", "out=..."],
    "out:x": ["'out:x' is not an override"],
}


def parse(text: str) -> Any:
    return OverridesParser.create().parse_override(quote(text)).value()


@pytest.mark.parametrize("value", TEXT)
def test_text_is_taken_as_it_stands(value: str) -> None:
    assert parse(f"out={value}") == value


@pytest.mark.parametrize("value", VALUES)
def test_lists_and_mappings_keep_their_values(value: str) -> None:
    assert parse(f"+out={value}") == VALUES[value]


@pytest.mark.parametrize("text", REFUSED)
def test_an_unclear_override_says_what_to_type(text: str) -> None:
    with pytest.raises(UserError) as error:
        quote(text)
    message = str(error.value)
    assert text in message and all(phrase in message for phrase in REFUSED[text]) and "\n" not in message


def test_the_advice_can_be_typed() -> None:
    assert parse('out="[a"') == "[a" and parse('out="rnage(1,3)"') == "rnage(1,3)"


def test_commas_outside_of_quotes_stay_a_sweep() -> None:
    override = OverridesParser.create().parse_override(quote("out=été,a=b,c"))
    assert override.is_sweep_override() and list(override.sweep_string_iterator()) == ["'été'", "'a=b'", "c"]
    assert not OverridesParser.create().parse_override(quote("out='été,a'")).is_sweep_override()


def test_a_command_gets_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = compose("sample", ["ckpt=modèle=1.safetensors", "prompts=[un cercle à gauche]", "out=été"])
    assert (cfg.ckpt, list(cfg.prompts), cfg.out) == ("modèle=1.safetensors", ["un cercle à gauche"], "été")
    with pytest.raises(SystemExit), user_errors():
        compose("sample", ["ckpt=a", "out=[été"])
    assert capsys.readouterr().err.count("\n") == 1
