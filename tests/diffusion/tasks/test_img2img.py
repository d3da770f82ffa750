"""Image to image."""

import pytest
import torch
from torch import Tensor

from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.schedule import Cosine, RectifiedFlow, ScaledLinear, Schedule
from ldm.diffusion.tasks.img2img import img2img, remaining_times
from ldm.diffusion.times import trailing
from tests.support.exact_samplers import exact_denoiser, no_noise

SCHEDULES = [ScaledLinear(), Cosine(), RectifiedFlow(1000)]
IDS = ["vp", "cosine", "flow"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_img2img_starts_at_its_strength(schedule: Schedule) -> None:
    times, z_T, z_0 = trailing(1000, 20), normal(2, 3, 4, 4), normal(1, 3, 4, 4, seed=1)
    starts: list[tuple[Tensor, Tensor]] = []

    def sampler(denoise, z, times, schedule, noise):  # noqa: ANN001, ANN202
        starts.append((z, times))
        return ddim(denoise, z, times, schedule, noise)

    steps = list(img2img(exact_denoiser(schedule), z_T, times, schedule, no_noise, sampler, z_0, 0.25))
    assert len(steps) == 5
    ((z, remaining),) = starts
    assert torch.equal(remaining, times[-6:])
    t = remaining[:1].double()
    torch.testing.assert_close(z, schedule.alpha(t) * z_0 + schedule.sigma(t) * z_T)


def test_img2img_stays_closer_with_less_strength() -> None:
    schedule, times, z_0 = ScaledLinear(), trailing(1000, 50), torch.full((1, 1, 8, 8), 1.5).double()
    distance = []
    for strength in (0.02, 0.2, 0.6, 1.0):
        *_, z = img2img(
            exact_denoiser(schedule), normal(4, 1, 8, 8), times, schedule, no_noise, ddim, z_0, strength
        )
        distance.append((z - z_0).square().mean().item())
    assert distance == sorted(distance) and distance[0] < 0.05 * distance[-1]


@pytest.mark.parametrize("strength", [0.0, 1.01, -1.0])
def test_a_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=rf"\(0, 1\], not {strength}"):
        remaining_times(trailing(1000, 5), strength)


def test_at_least_one_step_is_taken() -> None:
    assert [len(remaining_times(trailing(1000, 10), s)) - 1 for s in (0.001, 0.1, 0.55, 1.0)] == [1, 1, 6, 10]
