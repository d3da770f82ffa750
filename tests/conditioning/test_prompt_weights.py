"""Weights of words in a prompt: what is parsed, what is refused, and what a weight does to a token."""

import pytest
import torch

from ldm.conditioning.prompt_weights import WeightedText, parse, weigh
from ldm.errors import UserError

PARSED = {
    "": [],
    "a red circle": [("a red circle", 1)],
    "a (red:1.3) circle": [("a ", 1), ("red", 1.3), (" circle", 1)],
    "a (red) circle": [("a ", 1), ("red", 1.1), (" circle", 1)],
    "((red))": [("red", 1.1**2)],
    "(((red)))": [("red", 1.1**3)],
    "(red (circle:1.5):1.2)": [("red ", 1.2), ("circle", 1.8)],
    "((red:1.5))": [("red", 1.5 * 1.1)],
    "(a (b:2) c:0.5)": [("a ", 0.5), ("b", 1.0), (" c", 0.5)],
    "(a:0)": [("a", 0)],
    "(a:.5)(b:2.)": [("a", 0.5), ("b", 2)],
    "(a: 1.3 )": [("a", 1.3)],
    "(a:1.0) b": [("a b", 1)],
    "a (red:1) circle": [("a red circle", 1)],
    "(a:1.3)(b:1.3)": [("ab", 1.3)],
    "(16:9:1.2)": [("16:9", 1.2)],
    "a ratio of 16:9": [("a ratio of 16:9", 1)],
    r"\(a\)": [("(a)", 1)],
    r"(a \(b\):1.3)": [("a (b)", 1.3)],
    r"(4\:3)": [("4:3", 1.1)],
    r"a\\b \x": [("a\\b \\x", 1)],
    r"(a\\:2)": [("a\\", 2)],
    "[red] {a|b} <c>": [("[red] {a|b} <c>", 1)],
    "()": [],
    "(:1.3)": [],
    "(ein grüner (圆:1.2))": [("ein grüner ", 1.1), ("圆", 1.1 * 1.2)],
    "a\nb (c:2)": [("a\nb ", 1), ("c", 2)],
}


@pytest.mark.parametrize("prompt", PARSED)
def test_prompts_are_parsed(prompt):
    parts = parse(prompt)
    assert [part.text for part in parts] == [text for text, _ in PARSED[prompt]]
    assert [part.weight for part in parts] == pytest.approx([weight for _, weight in PARSED[prompt]])


REFUSED = {
    "(red": ["character 1 ", "not closed", r"\("],
    "a ((red)": ["character 3 ", "not closed"],
    "a red) circle": ["character 6 ", "closes no bracket", r"\)"],
    ")(": ["character 1 ", "closes no bracket"],
    "(red:1,3)": ["'1,3'", "(word:1.3)", r"\:"],
    "(red:)": ["''", "0 or more"],
    "(red:-1)": ["'-1'", "0 or more"],
    "(red:nan)": ["'nan'"],
    "(red:inf)": ["'inf'"],
    "(red:1e3)": ["'1e3'"],
    "(red:1_0)": ["'1_0'"],
    "(red:١)": ["'١'"],
    "(red:1.3.5)": ["'1.3.5'"],
    "(note: a circle)": ["'a circle'", r"\:"],
    "(red:(1.3))": ["not a number"],
    "(red:(1.3:2))": ["not a number"],
    "(a:" + "very long " * 99 + ")": ["[...]"],
}


@pytest.mark.parametrize("prompt", REFUSED)
def test_an_ill_formed_prompt_is_refused_in_one_line(prompt):
    with pytest.raises(UserError) as caught:
        parse(prompt)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    assert all(phrase in message for phrase in REFUSED[prompt]), message


def test_a_weight_moves_a_token_from_the_empty_texts_state():
    generator = torch.Generator().manual_seed(0)
    context, empty = torch.randn(2, 5, 3, generator=generator), torch.randn(1, 5, 3, generator=generator)
    weights = torch.tensor([[1.0, 0.0, 2.0, 1.3, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    weighed = weigh(context, empty, weights)
    assert torch.equal(weighed[1], context[1]), "weight 1 changes no bit"
    assert torch.equal(weighed[0, [0, 4]], context[0, [0, 4]])
    assert torch.equal(weighed[0, 1], empty[0, 1]), "weight 0 is the empty text"
    torch.testing.assert_close(weighed[0, 2], 2 * context[0, 2] - empty[0, 2])
    torch.testing.assert_close(weighed[0, 3], empty[0, 3] + 1.3 * (context[0, 3] - empty[0, 3]))
    assert weigh(context.bfloat16(), empty.bfloat16(), weights).dtype == torch.bfloat16


def test_parts_are_plain_values():
    assert parse("(a:2)") == [WeightedText("a", 2.0)]
