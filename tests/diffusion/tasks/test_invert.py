"""DDIM inversion."""

import pytest
import torch
from torch import Tensor

from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.schedule import Cosine, RectifiedFlow, ScaledLinear, Schedule
from ldm.diffusion.tasks.invert import invert
from ldm.diffusion.times import trailing
from tests.support.exact_samplers import MEAN, STD, exact_denoiser, no_noise

SCHEDULES = [ScaledLinear(), Cosine(), RectifiedFlow(1000)]
IDS = ["vp", "cosine", "flow"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_ddim_inverts_the_inversion(schedule: Schedule) -> None:
    times, z_0 = trailing(1000, 25).double(), MEAN + STD * normal(2, 3, 4, 4)
    errors = []
    for refinements in (0, 3, 40):
        *_, z_T = invert(exact_denoiser(schedule), z_0, times, schedule, refinements)
        *_, reconstructed = ddim(exact_denoiser(schedule), z_T, times, schedule, no_noise)
        errors.append((reconstructed - z_0).abs().max().item())
    assert errors[1] < 0.2 * errors[0] and errors[2] < 1e-9, errors


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="refinements >= 0, not -1"):
        next(
            invert(exact_denoiser(ScaledLinear()), normal(1, 1, 2, 2), trailing(1000, 5), ScaledLinear(), -1)
        )
    flow = RectifiedFlow(1000)
    with pytest.raises(ValueError, match="at least 2 steps"):
        next(invert(exact_denoiser(flow), normal(1, 1, 2, 2), trailing(1000, 1), flow, 0))


def test_inversion_evaluates_the_times_in_reverse() -> None:
    schedule, times, evaluated = ScaledLinear(), trailing(1000, 4), list[float]()
    ideal = exact_denoiser(schedule)

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        evaluated.append(t.item())
        return ideal(z_t, t)

    assert len(list(invert(denoise, normal(1, 1, 2, 2), times, schedule, 0))) == 4
    assert evaluated == [250, 500, 750, 1000]
