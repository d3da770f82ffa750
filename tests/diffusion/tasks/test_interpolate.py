"""Interpolation of noises and conditions."""

import pytest
import torch
from torch import Tensor

from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.schedule import ScaledLinear
from ldm.diffusion.tasks.interpolate import interpolate_conditions, slerp, slerp_noise
from ldm.diffusion.times import trailing
from ldm.typing import Conditioning
from tests.support.exact_samplers import exact_denoiser, no_noise


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_slerp_rotates_evenly_and_preserves_the_norm() -> None:
    a, b = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0])
    w = torch.linspace(0, 1, 7)
    path = slerp(a.expand(7, 3), b.expand(7, 3), w)
    torch.testing.assert_close(path.norm(dim=-1), torch.full((7,), 2.0))
    torch.testing.assert_close(torch.atan2(path[:, 1], path[:, 0]), w * torch.pi / 2)
    same = slerp(a, a, torch.tensor(0.3))
    torch.testing.assert_close(same, a)
    nothing = slerp(torch.zeros(3), torch.zeros(3), torch.tensor(0.3))
    assert torch.equal(nothing, torch.zeros(3))


def test_slerp_preserves_the_std_of_noise() -> None:
    a, b = normal(64, 512), normal(64, 512, seed=1)
    interpolated = slerp(a, b, torch.full((64,), 0.5).double())
    assert interpolated.std().item() == pytest.approx(1, abs=0.02)
    assert ((a + b) / 2).std().item() == pytest.approx(0.5**0.5, abs=0.02), "linear interpolation does not"


def test_conditions_are_interpolated_field_by_field() -> None:
    a = Conditioning(context=normal(2, 3, 4), vector=normal(2, 5, seed=1), concat=normal(2, 1, 2, 2, seed=2))
    b = Conditioning(
        context=normal(2, 3, 4, seed=3), vector=normal(2, 5, seed=4), concat=normal(2, 1, 2, 2, seed=5)
    )
    interpolated = interpolate_conditions(a, b, torch.tensor([0.0, 1.0]).double())
    for field in ("context", "vector", "concat"):
        torch.testing.assert_close(getattr(interpolated, field)[0], getattr(a, field)[0])
        torch.testing.assert_close(getattr(interpolated, field)[1], getattr(b, field)[1])
    half = interpolate_conditions(a, b, torch.full((2,), 0.5).double())
    torch.testing.assert_close(half.concat, (a.concat + b.concat) / 2)
    token = slerp(a.context[1, 2], b.context[1, 2], torch.tensor(0.5).double())
    torch.testing.assert_close(half.context[1, 2], token)
    assert (
        interpolate_conditions(
            Conditioning(context=a.context), Conditioning(context=b.context), torch.zeros(2)
        ).vector
        is None
    )
    with pytest.raises(ValueError, match="different fields"):
        interpolate_conditions(a, Conditioning(context=b.context), torch.zeros(2))


def test_slerp_noise_starts_between_the_noises() -> None:
    schedule, times, a, b = ScaledLinear(), trailing(1000, 5), normal(3, 1, 4, 4), normal(3, 1, 4, 4, seed=1)
    share = torch.tensor([0.0, 0.5, 1.0]).double()
    *_, z = slerp_noise(exact_denoiser(schedule), a, times, schedule, no_noise, ddim, b, share)
    *_, from_a = ddim(exact_denoiser(schedule), a, times, schedule, no_noise)
    *_, from_b = ddim(exact_denoiser(schedule), b, times, schedule, no_noise)
    torch.testing.assert_close(z[0], from_a[0])
    torch.testing.assert_close(z[2], from_b[2])
    assert (z[1] - from_a[1]).norm() > 0.1 and (z[1] - from_b[1]).norm() > 0.1
