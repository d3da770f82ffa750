"""The coordinates of latent positions, at every size."""

import pytest
import torch

from ldm.conditioning.base import Compose
from ldm.conditioning.coordinates import Coordinates


def grid(size, latent=None, n=2):
    return Compose({"coordinates": Coordinates(size)})({"caption": ["a"] * n}, size=latent).concat


def test_x_runs_to_the_right_and_y_down():
    assert grid(3).shape == (2, 2, 3, 3)
    assert grid(3)[1, 0].tolist() == [[-1, 0, 1]] * 3
    assert grid(3)[1, 1].tolist() == [[-1] * 3, [0] * 3, [1] * 3]


def test_at_another_size_they_are_still_relative_to_the_image():
    wide = grid(3, latent=(2, 5))
    assert wide.shape == (2, 2, 2, 5)
    assert wide[0, 0].tolist() == [[-1, -0.5, 0, 0.5, 1]] * 2
    assert wide[0, 1].tolist() == [[-1] * 5, [1] * 5]


def test_the_null_is_the_same_and_nothing_is_trained():
    conditioner = Coordinates(4)
    assert torch.equal(conditioner.null(2).concat, grid(4))
    assert torch.equal(conditioner.null(2, (3, 6)).concat, grid(4, (3, 6)))
    assert not list(conditioner.parameters()) and conditioner.dropout == 0 and not conditioner.state_dict()


def test_any_batch_key_gives_the_batch_size():
    assert torch.equal(Compose({"c": Coordinates(4)})({"label": torch.zeros(2)}).concat, grid(4))


def test_a_single_position_has_no_coordinates():
    with pytest.raises(ValueError, match="size=1"):
        Coordinates(1)
