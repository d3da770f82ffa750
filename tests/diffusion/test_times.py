import math
from functools import partial

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.schedule import Cosine, Karras, RectifiedFlow, ScaledLinear, Schedule
from ldm.diffusion.times import (
    LogitNormalTimes,
    LogNormalTimes,
    ShiftedTimes,
    UniformTimes,
    deterministic_u,
    explicit,
    exponential,
    karras,
    leading,
    linspace,
    stratify,
    trailing,
)

AYS = [1000, 851, 737, 646, 546, 456, 344, 234, 125, 25]
S = 0.5


@pytest.mark.parametrize("spacing", [leading, trailing, linspace])
def test_times_decrease_strictly_to_zero_for_every_number_of_steps(spacing) -> None:  # noqa: ANN001
    for steps in range(1, 1001):
        times = spacing(1000, steps)
        assert len(times) == steps + 1 and times[-1] == 0
        assert (times.diff() < 0).all()
        assert 1000 * (1 - 1 / steps) <= times[0] <= 1000 and times[-2] >= 1


def ddim_factor(schedule: Schedule, times: torch.Tensor) -> torch.Tensor:
    """Return z_0/z_T of DDIM on data N(0, S²), whose exact denoiser is linear: one factor per step."""
    alpha, sigma = schedule.alpha(times).flatten(), schedule.sigma(times).flatten()
    z_0 = alpha * S**2 / (alpha**2 * S**2 + sigma**2)
    eps = (1 - alpha * z_0) / sigma
    return (alpha[1:] * z_0[:-1] + sigma[1:] * eps[:-1]).prod()


KINDS = {
    "scaled_linear": ScaledLinear(),
    "cosine": Cosine(),
    "zero_terminal_snr": ScaledLinear(zero_terminal_snr=True),
    "rectified_flow": RectifiedFlow(),
    "karras": Karras(),
}
WHOLE, IN_LAM = (leading, trailing, linspace, partial(karras, rho=1.0)), (karras, exponential)
EVERY = [("scaled_linear", s) for s in WHOLE] + [(kind, s) for kind in KINDS for s in IN_LAM]


@pytest.mark.parametrize(("kind", "spacing"), EVERY)
def test_every_spacing_with_every_number_of_steps_on_every_schedule(kind, spacing) -> None:  # noqa: ANN001
    """Spacings of whole times use only T of the schedule, so one schedule is enough for them."""
    schedule = KINDS[kind]
    for steps in range(1, 1001):
        times = spacing(schedule, steps)
        numbers = times.tolist()
        assert len(times) == steps + 1 and numbers[-1] == 0 and (times.diff() < 0).all(), steps
        assert 1000 * (1 - 1 / steps) <= numbers[0] <= 1000 and numbers[-2] >= 1, steps
        assert ddim_factor(schedule, times).isfinite(), steps


def test_the_product_of_factors_is_ddim() -> None:
    """The test above therefore replaces 15 million calls of the sampler."""
    schedule, times = ScaledLinear(), karras(ScaledLinear(), 7)

    def denoise(z_t: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alpha, sigma = schedule.alpha(t.reshape(1)).to(z_t), schedule.sigma(t.reshape(1)).to(z_t)
        z_0 = alpha * S**2 * z_t / (alpha**2 * S**2 + sigma**2)
        return z_0, (z_t - alpha * z_0) / sigma

    *_, z = ddim(denoise, torch.ones(1, 1, 1, 1), times, schedule, lambda step: torch.zeros(1, 1, 1, 1))
    assert z.item() == pytest.approx(ddim_factor(schedule, times).item(), rel=1e-5)


def test_published_spacings() -> None:
    assert leading(1000, 50)[:2].tolist() == [981, 961]
    assert trailing(1000, 50)[:2].tolist() == [1000, 980]
    assert linspace(1000, 2).tolist() == [1000, 1, 0]


@pytest.mark.parametrize("ours", ["karras", "exponential"])
def test_spacings_in_lam_equal_diffusers(ours: str) -> None:
    kind = {f"use_{ours}_sigmas": True}
    peer = EulerDiscreteScheduler(1000, 0.00085, 0.012, "scaled_linear", timestep_spacing="linspace", **kind)
    schedule, spacing = ScaledLinear(), {"karras": karras, "exponential": exponential}[ours]
    for steps in (2, 5, 20, 50):
        peer.set_timesteps(steps)
        times = spacing(schedule, steps)
        torch.testing.assert_close(times[:-1] - 1, peer.timesteps, rtol=1e-4, atol=2e-2)
        ratio = (-schedule.lam(times[:-1])).exp().flatten()
        torch.testing.assert_close(ratio, peer.sigmas[:-1], rtol=1e-4, atol=0)


def test_karras_levels_equal_the_paper() -> None:
    """sigma_i = (max^(1/rho) + i/(N-1) (min^(1/rho) - max^(1/rho)))^rho (Karras et al. 2022, eq. 5)."""
    schedule = Karras()
    ratio = (-schedule.lam(karras(schedule, 18)[:-1].double())).exp().flatten()
    i = torch.arange(18, dtype=torch.float64) / 17
    want = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(ratio, want, rtol=1e-5, atol=0)
    assert torch.equal(karras(schedule, 1000)[:-1], torch.arange(1000, 0, -1.0)), "its own times are whole"


def test_a_list_of_times_is_used_unchanged_or_interpolated_in_lam() -> None:
    schedule = ScaledLinear()
    assert AYS == [t + 1 for t in AysSchedules["StableDiffusionTimesteps"]]
    times = explicit(schedule, 10, AYS)
    assert times.tolist() == [*AYS, 0]
    ratio = (-schedule.lam(times[:-1])).exp().flatten()
    published = torch.tensor(AysSchedules["StableDiffusionSigmas"][:-1])
    torch.testing.assert_close(ratio, published, rtol=5e-3, atol=0)  # to three digits
    doubled = explicit(schedule, 19, AYS)
    torch.testing.assert_close(doubled[:-1:2], times[:-1], rtol=1e-5, atol=1e-3)
    middle = (schedule.lam(doubled[:-1:2]).flatten()[1:] + schedule.lam(doubled[:-1:2]).flatten()[:-1]) / 2
    torch.testing.assert_close(schedule.lam(doubled[1:-1:2]).flatten(), middle, rtol=1e-4, atol=1e-4)
    noisier = ScaledLinear(zero_terminal_snr=True)
    for steps in range(1, 1001):
        times = explicit(noisier, steps, AYS)
        assert len(times) == steps + 1 and (times.diff() < 0).all() and times[0] == 1000


@pytest.mark.parametrize("steps", [0, 1001])
def test_numbers_of_steps_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=rf"1..1000, not {steps}"):
        trailing(1000, steps)
    for spacing in (karras, exponential, partial(explicit, times=AYS)):
        with pytest.raises(ValueError, match=rf"1..1000, not {steps}"):
            spacing(ScaledLinear(), steps)


@pytest.mark.parametrize("times", [[1000], [10, 20], [1001, 5], [5, 0.5]])
def test_invalid_lists_of_times_are_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match=r"times .* 2 or more, .* 1\.\.1000, not"):
        explicit(ScaledLinear(), 2, times)


def test_uniform_times_are_uniform() -> None:
    t = UniformTimes(10)(torch.arange(1000) / 1000)
    assert torch.bincount(t.long()).tolist() == [0] + [100] * 10


def test_logit_normal_has_the_stated_median_and_stays_in_range() -> None:
    u = (torch.arange(10_000) + 0.5) / 10_000
    t = LogitNormalTimes(1000, mean=0.5, std=1.0)(u)
    assert t.median().item() == pytest.approx(1000 / (1 + math.exp(-0.5)), abs=1)
    extreme = LogitNormalTimes(1000)(torch.tensor([0.0, 1 - 2**-24]))
    assert extreme.min() >= 1 and extreme.max() <= 1000


@pytest.mark.parametrize("schedule", [Karras(), ScaledLinear(), RectifiedFlow()])
def test_log_normal_noise_levels_have_the_stated_mean_and_spread(schedule: Schedule) -> None:
    u = (torch.arange(10_000) + 0.5) / 10_000
    t = LogNormalTimes(schedule, mean=-0.4, std=0.8)(u)
    ratio = -schedule.lam(t).flatten()
    assert ratio.mean().item() == pytest.approx(-0.4, abs=0.01)
    assert ratio.std().item() == pytest.approx(0.8, abs=0.01)
    extreme = LogNormalTimes(schedule, -1.2, 3.0)(torch.tensor([0.0, 1 - 2**-24]))
    assert extreme.min() >= 1 and extreme.max() <= 1000


def test_shifted_times_multiply_sigma_over_alpha_of_a_flow() -> None:
    """Esser et al. (2024), eq. 23; a shifted schedule with unshifted times gives the same noise."""
    u = (torch.arange(1000) + 0.5) / 1000
    t, shifted = LogitNormalTimes(1000)(u), ShiftedTimes(LogitNormalTimes(1000), 1000, 3.0)(u)
    inner = t < 1000
    plain = RectifiedFlow().lam(t[inner].double()) - math.log(3)
    torch.testing.assert_close(RectifiedFlow().lam(shifted[inner].double()), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(RectifiedFlow(shift=3.0).sigma(t), RectifiedFlow().sigma(shifted))
    assert torch.equal(ShiftedTimes(UniformTimes(1000), 1000, 1.0)(u), UniformTimes(1000)(u))
    clamped = ShiftedTimes(UniformTimes(1000), 1000, 0.1)(torch.tensor([0.0]))
    assert clamped.item() == 1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(0, 10**9), st.integers(0, 2**31))
def test_a_global_batch_has_one_u_in_every_stratum(batch: int, step: int, seed: int) -> None:
    position = step * batch + torch.arange(batch)
    u = torch.rand(batch, generator=torch.Generator().manual_seed(seed))
    spread = stratify(u, position, batch)
    within = spread.double() * batch - torch.arange(batch)
    assert within.min() > -1e-4 and within.max() < 1 + 1e-4, "in its own stratum, up to fp32 rounding"
    cut = batch // 2
    parts = [stratify(u[i], position[i], batch) for i in (slice(cut), slice(cut, None))]
    assert torch.equal(torch.cat(parts), spread), "two ranks have the same u as one"


def test_u_stays_below_1_and_one_stratum_changes_nothing() -> None:
    last = torch.tensor([1 - 2**-24])
    for batch in (1, 64, 2048, 4096):
        u = stratify(last, torch.tensor([batch - 1]), batch)
        assert u < 1 and UniformTimes(1000)(u) == 1000
    u = torch.rand(1000)
    assert torch.equal(stratify(u, torch.arange(1000), 1), u)
    with pytest.raises(ValueError, match="strata >= 1 parts .* not 0"):
        stratify(u, torch.arange(1000), 0)


def test_stratification_lowers_the_variance_of_a_batch_mean() -> None:
    u = torch.rand(2000, 64, generator=torch.Generator().manual_seed(0))
    spread = torch.stack([stratify(row, torch.arange(64), 64) for row in u])
    assert spread.mean(1).std() < u.mean(1).std() / 20
    assert spread.mean().item() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("n", [10, 25, 100, 256, 1000])
def test_validation_times_are_evenly_spread_for_any_number_of_images(n: int) -> None:
    for first in (0, 7, 1000):
        u = deterministic_u(torch.arange(first, first + n))
        assert u.min() >= 0 and u.max() < 1 and u.dtype == torch.float32
        counts = torch.bincount((u * 10).long(), minlength=10)
        assert (counts - n / 10).abs().max() <= 2
        assert u.mean().item() == pytest.approx(0.5, abs=1.5 / n + 0.01)


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="log-normal times need std > 0, not 0"):
        LogNormalTimes(ScaledLinear(), 0.0, 0)
    with pytest.raises(ValueError, match="shift > 0, not 0"):
        ShiftedTimes(UniformTimes(10), 10, 0)
    with pytest.raises(ValueError, match="rho > 0, not -1"):
        karras(ScaledLinear(), 5, rho=-1)
