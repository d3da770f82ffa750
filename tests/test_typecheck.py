"""The tests run with type and shape checks, so that wrong annotations are noticed."""

import pytest
import torch
from jaxtyping import TypeCheckError

from ldm.losses.reconstruction import ReconstructionLoss


def test_shapes_and_types_are_checked():
    with pytest.raises(TypeCheckError):
        ReconstructionLoss()(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8))
    with pytest.raises(TypeCheckError):
        ReconstructionLoss("a")


def test_an_int_is_accepted_as_a_float():
    assert ReconstructionLoss(2)(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)).tolist() == [2.0]
