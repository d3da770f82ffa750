"""Every numeric key of every config at its limits: used as given, with finite results, or refused by name.

`tests.support.numbers` collects the arguments, `tests.support.probe_cases` states how to build and run them.
All of these runs are marked slow; a sample of them is always made.
"""

import warnings
from typing import Any

import pytest
import torch

from ldm.cli.config.key_types import COMMANDS, LIBRARIES
from ldm.cli.config.ranges import check_ranges
from ldm.errors import UserError
from tests.support.numbers import PAGE, arguments, bounds, build_page, limits, wrong
from tests.support.probe_cases import CASES
from tests.support.probes import NOT_SET, Case

ARGUMENTS = {key: hint for key, hint in arguments().items() if key not in NOT_SET}
PROBED = [key for key in ARGUMENTS if key[0] not in COMMANDS and key[0] not in LIBRARIES]
SAMPLE = PROBED[::24]


def node(target: str, name: str, value: Any) -> dict[str, Any]:
    return {name: value} if target in COMMANDS else {"node": {"_target_": target, name: value}}


@pytest.mark.parametrize(("target", "name"), ARGUMENTS, ids=map(".".join, ARGUMENTS))
def test_a_value_beyond_the_limits_is_refused_by_name(target: str, name: str) -> None:
    hint, key = ARGUMENTS[target, name], name if target in COMMANDS else f"node.{name}"
    assert all(bound is not None for bound in bounds(hint)), "the type states no range"
    for value in wrong(hint):
        with pytest.raises(UserError) as error:
            check_ranges(target, node(target, name, value), node(target, name, value))
        message = str(error.value)
        assert message.startswith(f"{key} must be ") and "\n" not in message
    for value in limits(hint):
        check_ranges(target, node(target, name, value), node(target, name, value))


def test_every_class_has_a_case() -> None:
    assert {target for target, _ in PROBED} == CASES.keys()


def probe(target: str, name: str) -> None:
    case: Case = CASES[target]
    for value in limits(ARGUMENTS[target, name]):
        numbers = value if isinstance(value, list) else [value]
        is_large = any(isinstance(number, int | float) and number > case.largest for number in numbers)
        try:
            with torch.device("meta" if is_large else "cpu"), warnings.catch_warnings(action="ignore"):
                built = case.build(target, **{name: value})
            results = [] if is_large else list(case.run(built))
        except UserError as error:  # at odds with other arguments
            assert str(error) and "\n" not in str(error)
            continue
        assert all(torch.as_tensor(result).isfinite().all() for result in results), f"{name}={value}"
        stored = getattr(built, name, value)
        if isinstance(value, int | float) and not callable(stored):
            assert stored in (value, [value])  # one label is a list of one


@pytest.mark.parametrize(("target", "name"), SAMPLE, ids=map(".".join, SAMPLE))
def test_a_value_at_its_limits_is_used(target: str, name: str) -> None:
    probe(target, name)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name"), PROBED, ids=map(".".join, PROBED))
def test_every_value_at_its_limits_is_used(target: str, name: str) -> None:
    probe(target, name)


def test_the_page_of_ranges_is_current() -> None:
    assert PAGE.read_text() == build_page(), "run `python -m tests.support.numbers` and commit the page"
