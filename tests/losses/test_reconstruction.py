"""Pixel distances, by hand."""

import pytest
import torch

from ldm.losses.reconstruction import ReconstructionLoss

X = torch.zeros(2, 1, 2, 2)
X_HAT = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]], [[[0.0, 0.0], [1.0, 3.0]]]])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, [0.5, 1.0]),
        ({"l1": 2.0}, [1.0, 2.0]),
        ({"l1": 0.0, "l2": 1.0}, [0.25, 2.5]),
        ({"l1": 0.0, "gradient": 1.0}, [0.0, 2.0 + 1.0]),  # down: 1, 3; right: 0, 2
        ({"l1": 1.0, "l2": 2.0, "gradient": 0.5}, [1.0, 7.5]),
    ],
)
def test_each_term_by_hand(weights: dict[str, float], expected: list[float]) -> None:
    torch.testing.assert_close(ReconstructionLoss(**weights)(X_HAT, X), torch.tensor(expected))


def test_only_the_error_matters() -> None:
    loss, shift = ReconstructionLoss(1.0, 1.0, 1.0), torch.randn(1, 1, 2, 2)
    torch.testing.assert_close(loss(X_HAT + shift, X + shift), loss(X_HAT, X))


@pytest.mark.parametrize("weights", [{"l1": 0.0}, {"l2": -1.0}])
def test_invalid_weights_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"l1=.*, l2=.*, gradient=.*>= 0"):
        ReconstructionLoss(**weights)
