r"""Weights of words in a prompt, written as (word:1.3).

| prompt | weights |
|---|---|
| `a (red:1.3) circle` | red 1.3, the rest 1 |
| `a (red) circle` | red 1.1 |
| `a ((red)) circle` | red 1.21: nested weights are multiplied |
| `a (red (circle:1.5):1.2)` | red 1.2, circle 1.8 |
| `a \(red\) circle`, `(4\:3)` | brackets and a colon as text; `\\` is a backslash |

This is AUTOMATIC1111's notation, without its square brackets: those are text, as in ComfyUI.

A weight w moves the state c of a token away from that of the empty text at the same position, c_0, as ComfyUI
does, and compel for w > 1. AUTOMATIC1111's web UI multiplies c by w instead and then restores the mean over
all tokens, which divides by a mean that may be close to 0. Here w = 0 gives the empty text's state.
"""

import re
from dataclasses import dataclass
from textwrap import shorten

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.errors import UserError

DEFAULT = 1.1
"""The weight of words in brackets without a number."""
_PIECE = re.compile(r"\\[()\\:]|[()\\:]|[^()\\:]+")
_NUMBER = re.compile(r"\d+\.?\d*|\.\d+", re.ASCII)


@dataclass(frozen=True)
class WeightedText:
    """A part of a prompt whose words have the same weight."""

    text: str
    weight: float


_COLON = WeightedText(":", 1.0)
"""The one object for a colon without a backslash; `is` distinguishes it from a colon that is text."""


def parse(prompt: str) -> list[WeightedText]:
    """Return the parts of a prompt in order; neighbours of the same weight are one part.

    UserError for a bracket without a partner, and for a weight that is not a number of 0 or more.
    """
    groups: list[list[WeightedText]] = [[]]  # of the open brackets, innermost last
    opened: list[int] = []
    for match in _PIECE.finditer(prompt):
        if match[0] == "(":
            groups.append([])
            opened.append(match.start())
        elif match[0] == ")":
            if not opened:
                raise _unpaired(prompt, match.start(), "closes no bracket", r"\)")
            opened.pop()
            inner = groups.pop()
            groups[-1] += _apply_weight(inner, prompt)
        else:
            escaped = match[0][0] == "\\" and len(match[0]) == 2
            part = WeightedText(match[0][1:] if escaped else match[0], 1.0)
            groups[-1].append(_COLON if match[0] == ":" else part)
    if opened:
        raise _unpaired(prompt, opened[-1], "is not closed", r"\(")
    return _merge(groups[0])


def weigh(
    context: Float[Tensor, "b l d"], empty: Float[Tensor, "#b l d"], weights: Float[Tensor, "b l"]
) -> Float[Tensor, "b l d"]:
    """c' = c_0 + w (c - c_0) per token, and c itself where w = 1.

    Args:
        empty: c_0, the states of the empty text.
    """
    w = weights.to(context)[..., None]
    return torch.where(w == 1, context, empty + w * (context - empty))


def _apply_weight(group: list[WeightedText], prompt: str) -> list[WeightedText]:
    """Multiply the weights in a bracket by the number after its last colon, or by DEFAULT without one."""
    colons = [i for i, part in enumerate(group) if part is _COLON]
    if not colons:
        return [WeightedText(part.text, part.weight * DEFAULT) for part in group]
    after = group[colons[-1] + 1 :]
    number = "".join(part.text for part in after).strip()
    if not _NUMBER.fullmatch(number) or any(part.weight != 1 for part in after):
        raise UserError(
            f"the weight {shorten(number, 40)!r} in the prompt {_show(prompt)} is not a number of 0 or more: "
            r"write (word:1.3), or \: for a colon in the text"
        )
    return [WeightedText(part.text, part.weight * float(number)) for part in group[: colons[-1]]]


def _merge(parts: list[WeightedText]) -> list[WeightedText]:
    merged: list[WeightedText] = []
    for part in parts:
        if merged and merged[-1].weight == part.weight:
            merged[-1] = WeightedText(merged[-1].text + part.text, part.weight)
        else:
            merged.append(part)
    return merged


def _unpaired(prompt: str, position: int, what: str, escaped: str) -> UserError:
    return UserError(
        f"the bracket at character {position + 1} of the prompt {_show(prompt)} {what}: add its partner, or "
        f"write {escaped} for a bracket in the text"
    )


def _show(prompt: str) -> str:
    return repr(shorten(prompt, 80))
