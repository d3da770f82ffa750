"""The known part stays exact, and the unknown part fits it."""

from functools import partial

import pytest
import torch
from torch import Tensor

from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.samplers.steps import schedule_points
from ldm.diffusion.schedule import Cosine, RectifiedFlow, ScaledLinear, Schedule
from ldm.diffusion.tasks.inpaint import add_noise, inpaint, resample
from ldm.diffusion.times import trailing
from tests.support.exact_samplers import ODE, SDE, exact_denoiser, no_noise, seeded_noise

SCHEDULES = [ScaledLinear(), Cosine(), RectifiedFlow(1000)]
IDS = ["vp", "cosine", "flow"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
@pytest.mark.parametrize("name", [*ODE, *SDE])
def test_the_known_part_is_unchanged(name: str, schedule: Schedule) -> None:
    known, mask = normal(1, 2, 4, 4, seed=1), torch.zeros(1, 1, 4, 4).double()
    mask[..., :2] = 1
    z_T, sampler = normal(3, 2, 4, 4), (ODE | SDE)[name]
    *_, z = inpaint(
        exact_denoiser(schedule),
        z_T,
        trailing(1000, 6),
        schedule,
        seeded_noise((3, 2, 4, 4)),
        sampler,
        known,
        mask,
    )
    torch.testing.assert_close(z[..., 2:], known.expand_as(z)[..., 2:], rtol=1e-9, atol=1e-9)
    assert not torch.isclose(z[..., :2], known[..., :2]).any()


def test_the_known_part_is_a_noisy_copy_at_every_step() -> None:
    schedule, times, known = ScaledLinear(), trailing(1000, 6), normal(1, 1, 2, 2, seed=1)
    z_T = schedule.alpha(times[:1].double()) * known + schedule.sigma(times[:1].double()) * normal(1, 1, 2, 2)
    steps = inpaint(
        exact_denoiser(schedule),
        z_T,
        times,
        schedule,
        no_noise,
        ddim,
        known,
        torch.zeros(1, 1, 2, 2).double(),
    )
    for t, z in zip(times[1:, None].double(), steps, strict=True):
        torch.testing.assert_close(z, schedule.alpha(t) * known + schedule.sigma(t) * normal(1, 1, 2, 2))


def correlated_denoiser(schedule: Schedule, rho: float):  # noqa: ANN201
    """Return the exact denoiser of two pixels of variance 1 and correlation rho."""
    cov = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        (at,) = schedule_points(schedule, t.reshape(1))
        gain = at.alpha * cov @ torch.linalg.inv(at.alpha**2 * cov + at.sigma**2 * torch.eye(2).double())
        z_0 = z_t @ gain
        return z_0, (z_t - at.alpha * z_0) / at.sigma

    return denoise


def test_resampling_fits_the_unknown_part_to_the_known_one() -> None:
    """One of two correlated pixels is known: the regression slope of the other should be the correlation."""
    schedule, rho, n = ScaledLinear(), 0.9, 2000
    known, mask = normal(n, 1, 1, 2, seed=1), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2).double()
    slopes = []
    for repeats in (1, 6):
        sampler = partial(inpaint, sampler=(SDE["ddpm"]), known=known, mask=mask)
        *_, z = resample(
            correlated_denoiser(schedule, rho), normal(n, 1, 1, 2), trailing(1000, 20), schedule,
            seeded_noise((n, 1, 1, 2)), sampler, repeats, 1,
        )  # fmt: skip
        x, y = known[..., 1].flatten(), z[..., 0].flatten()
        slopes.append(((x * y).mean() / x.square().mean()).item())
    assert abs(slopes[1] - rho) < 0.5 * abs(slopes[0] - rho)


def test_resampling_numbers_its_noise() -> None:
    schedule, calls = ScaledLinear(), list[int]()

    def noise(i: int) -> Tensor:
        calls.append(i)
        return seeded_noise((1, 1, 2, 2))(i)

    times, z_T = trailing(1000, 5), normal(1, 1, 2, 2)
    steps = list(
        resample(exact_denoiser(schedule), z_T, times, schedule, noise, SDE["ddpm"], repeats=2, jump=2)
    )
    assert len(steps) == 10
    assert calls == list(range(len(calls)))
    assert len(calls) == 8 + 3, "one per step except those into 0, and one for each of three segments"
    once = list(
        resample(exact_denoiser(schedule), z_T, times, schedule, no_noise, ODE["ddim"], repeats=1, jump=99)
    )
    straight = list(ddim(exact_denoiser(schedule), z_T, times, schedule, no_noise))
    assert all(map(torch.equal, once, straight))
    with pytest.raises(ValueError, match="repeats >= 1 and jump >= 1, not 0 and 1"):
        next(resample(exact_denoiser(schedule), z_T, times, schedule, noise, ddim, 0, 1))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_added_noise_gives_the_marginal_of_its_time(schedule: Schedule) -> None:
    s, t = schedule_points(schedule, torch.tensor([200.0, 700.0]))
    z_0, n = 0.5, 20_000
    z_s = s.alpha * z_0 + s.sigma * normal(n, 1, 1, 1)
    z_t = add_noise(z_s, s, t, normal(n, 1, 1, 1, seed=1))
    assert z_t.mean().item() == pytest.approx(t.alpha * z_0, abs=4 * t.sigma / n**0.5)
    assert z_t.std().item() == pytest.approx(t.sigma, rel=0.02)
