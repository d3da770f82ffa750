"""The comparison of gradients sees a fault in a layer whose gradients are small."""

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


def of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def test_a_fault_in_a_small_layer_is_seen() -> None:
    theirs = of(with_gradients(large=1.0, small=2e-3))
    assert_same_gradients(with_gradients(large=1.0, small=2e-3), theirs)
    wrong = with_gradients(large=1.0, small=2e-3 * 1.01)
    difference = max((p.grad - theirs[name]).abs().max() for name, p in wrong.named_parameters())
    assert difference < 1e-4, "which one maximum over all parameters lets pass"
    with pytest.raises(AssertionError, match="small"):
        assert_same_gradients(wrong, theirs)


def test_what_is_rounding_is_measured_against_the_largest() -> None:
    errors = gradient_errors(with_gradients(large=1.0, none=3e-8), of(with_gradients(large=1.0, none=-3e-8)))
    assert errors == pytest.approx({"large": 0, "none": 1.2e-5})


def test_a_parameter_that_one_side_lacks_is_seen() -> None:
    with pytest.raises(AssertionError):
        assert_same_gradients(with_gradients(a=1.0), of(with_gradients(a=1.0, b=1.0)))
