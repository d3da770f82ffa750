"""Values are checked against the types of the arguments that they set; each error names the shortest key."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from torch import nn

from ldm.cli.config.compose import compose
from ldm.cli.config.ranges import accepts, argument_types, check_ranges, describe
from ldm.errors import UserError
from ldm.typing import FiniteFloat, Length, Multipliers, PositiveInt, Proportion, Range, Seed

TYPES: list[tuple[Any, list[Any], list[Any], str]] = [
    (
        PositiveInt,
        [1, 2**31 - 1],
        [0, -1, 2**31, 1.0, True, "1", None, [1]],
        "a whole number in 1..2147483647",
    ),
    (Proportion, [0, 1, 0.5], [-0.1, 1.1, float("nan"), float("inf"), True, "a", None], "a number in 0..1"),
    (
        FiniteFloat | None,
        [-1e6, 0, None],
        [1e7, "a", float("-inf")],
        "a number in -1000000..1000000, or null",
    ),
    (Seed, [0, 2**32 - 1], [-1, 2**32], "a whole number in 0..4294967295"),
    (Multipliers, [[1], [1, 2]], [[], [0], [1.5], 1, [1] * 13], "a list of 1 to 12 whole numbers in 1..256"),
    (Annotated[Sequence[float], Length(2, 2)], [[0, 0.5]], [[0], [0] * 3, [0, None]], "a list of 2 numbers"),
    (Sequence[Sequence[int]], [[], [[1]]], [[1], [[1.5]], 1], "a list of lists of whole numbers"),
    (Mapping[str, PositiveInt], [{}, {"a": 1}], [{"a": 0}, 1, [1]], "by name, as in {NAME: 1}"),
    (Annotated[float, Range(1e-8, 1)], [1e-8], [0, 1e-9], "a number in 1e-08..1"),
    (bool, [True], [1, 0, "true", None], "true or false"),
    (str | None, ["a", None], [1, 1.5, True], "text, or null"),
    (Literal["a", "b"], ["a"], ["c", 1], "a or b"),
    (nn.Module | None, [None, {"_target_": "x"}], [1, True, 2.5], "an object with a _target_, or null"),
    (Callable[[int], float], [{"_target_": "x"}], [1], "an object with a _target_"),
]


@pytest.mark.parametrize(("hint", "valid", "invalid", "text"), TYPES, ids=[t[3] for t in TYPES])
def test_a_type_accepts_its_values_alone(hint: Any, valid: list[Any], invalid: list[Any], text: str) -> None:
    assert all(accepts(hint, value) for value in valid)
    assert not any(accepts(hint, value) for value in invalid)
    assert text in describe(hint)


def test_the_source_of_an_interpolated_value_is_named() -> None:
    with pytest.raises(UserError, match=r"^schedule\.num_steps must be .* not 0$"):
        compose("train", ["experiment=debug/text", "data.shards=s", "first_stage=f", "schedule.num_steps=0"])
    with pytest.raises(UserError, match=r"^autoencoder\.decoder\.channels must be"):
        compose("train", ["experiment=debug/ae", "data.shards=s", "autoencoder.decoder.channels=-1"])


def test_an_interpolated_value_is_checked_where_its_source_has_no_type() -> None:
    raw = {"a": 0, "b": {"_target_": "ldm.diffusion.times.UniformTimes", "num_steps": "${a}"}}
    with pytest.raises(UserError, match=r"^b\.num_steps must be a whole number in 1\.\.10000, not 0$"):
        check_ranges("none", raw, {"a": 0, "b": {**raw["b"], "num_steps": 0}})  # type: ignore[dict-item]


def test_values_in_lists_and_of_unknown_classes_are_checked() -> None:
    node = {"_target_": "ldm.diffusion.times.UniformTimes", "num_steps": True}
    with pytest.raises(UserError, match=r"^a\.1\.num_steps must be a whole number .* not true$"):
        check_ranges("none", {"a": [1, node]}, {"a": [1, node]})
    unknown = {"a": {"_target_": "their.Class", "value": float("nan")}}
    with pytest.raises(UserError, match=r"^a\.value must be a number, not nan$"):
        check_ranges("none", unknown, unknown)
    check_ranges(
        "none", {"a": {"_target_": "ldm.no.Class", "b": 0}}, {"a": {"_target_": "ldm.no.Class", "b": 0}}
    )


def test_a_whole_float_gets_the_integer_as_advice() -> None:
    with pytest.raises(UserError, match=r"^steps must be .* not 2\.0: write 2$"):
        compose("sample", ["ckpt=a", "steps=2.0"])
    with pytest.raises(UserError, match=r"^steps must be .* not 2\.5$"):
        compose("sample", ["ckpt=a", "steps=2.5"])


def test_the_types_of_arguments_are_those_of_the_constructor() -> None:
    assert argument_types("ldm.diffusion.times.UniformTimes").keys() == {"num_steps"}
    assert argument_types("ldm.diffusion.times.karras")["rho"] is not None
    assert argument_types("torch.optim.Adam")["lr"] is not None and argument_types("their.Class") == {}
