"""The distance of Gaussians in closed form, and what the demo's features respond to."""

import pytest
import torch

from ldm.evaluation.frechet import demo_features, frechet_distance


def test_equals_the_closed_form_of_gaussians() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(200_000, 3, generator=g, dtype=torch.float64) for _ in range(2))
    scale, shift = torch.tensor([2.0, 0.5, 1.0]).double(), torch.tensor([1.0, 0.0, -2.0]).double()
    # |m|² + sum (1 - s)² for diagonal covariances
    assert frechet_distance(x, y * scale + shift) == pytest.approx(5 + 1 + 0.25, abs=0.03)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))
    assert frechet_distance(x @ turn, (y * scale + shift) @ turn) == pytest.approx(6.25, abs=0.03)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="3 features needs more than 3 images"):
        frechet_distance(torch.zeros(3, 3), torch.zeros(9, 3))


def test_the_features_respond_to_colours_positions_and_edges() -> None:
    g = torch.Generator().manual_seed(0)
    plain = torch.zeros(150, 3, 32, 32) + 0.05 * torch.randn(150, 3, 1, 1, generator=g)
    red, left, striped = plain.clone(), plain.clone(), plain.clone()
    red[:, 0] += 0.5
    left[..., :16] += 0.25
    left[..., 16:] -= 0.25
    striped[..., ::2] += 0.25
    striped[..., 1::2] -= 0.25
    base = demo_features(plain)
    assert base.shape == (150, 4 * 4 * 3 + 64)
    for changed in (red, left, striped):
        assert frechet_distance(demo_features(changed), base) > 0.5
    assert torch.equal(demo_features(plain), base), "the filters are the same each time"
