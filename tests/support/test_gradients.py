"""The comparison of gradients detects an error in a layer with small gradients."""

import pytest
import torch
from torch import nn

from tests.support.gradients import assert_same_gradients, gradient_errors


def with_gradients(**gradients: float) -> nn.Module:
    module = nn.Module()
    for name, value in gradients.items():
        parameter = nn.Parameter(torch.zeros(3))
        parameter.grad = torch.tensor([value, 0.0, -value])
        module.register_parameter(name, parameter)
    return module


def gradients_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def test_an_error_in_a_layer_with_small_gradients_is_found() -> None:
    theirs = gradients_of(with_gradients(large=1.0, small=2e-3))
    assert_same_gradients(with_gradients(large=1.0, small=2e-3), theirs)
    wrong = with_gradients(large=1.0, small=2e-3 * 1.01)
    difference = max((p.grad - theirs[name]).abs().max() for name, p in wrong.named_parameters())
    assert difference < 1e-4, "one maximum over all parameters would accept this"
    with pytest.raises(AssertionError, match="small"):
        assert_same_gradients(wrong, theirs)


def test_rounding_errors_are_relative_to_the_largest_gradient() -> None:
    errors = gradient_errors(
        with_gradients(large=1.0, none=3e-8), gradients_of(with_gradients(large=1.0, none=-3e-8))
    )
    assert errors == pytest.approx({"large": 0, "none": 1.2e-5})


def test_a_parameter_missing_on_one_side_is_found() -> None:
    with pytest.raises(AssertionError):
        assert_same_gradients(with_gradients(a=1.0), gradients_of(with_gradients(a=1.0, b=1.0)))
