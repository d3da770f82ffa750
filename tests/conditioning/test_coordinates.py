import pytest
import torch

from ldm.conditioning.coordinates import Coordinates


def test_x_runs_to_the_right_and_y_down():
    grid = Coordinates(3)(["a", "b"]).concat
    assert grid.shape == (2, 2, 3, 3)
    assert grid[1, 0].tolist() == [[-1, 0, 1]] * 3
    assert grid[1, 1].tolist() == [[-1] * 3, [0] * 3, [1] * 3]


def test_the_null_is_the_same_and_nothing_is_trained():
    conditioner = Coordinates(4)
    torch.testing.assert_close(conditioner.null(2).concat, conditioner(["", ""]).concat)
    assert not list(conditioner.parameters()) and conditioner.dropout == 0


def test_one_place_has_no_coordinates():
    with pytest.raises(ValueError, match="not 1"):
        Coordinates(1)
