import math

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.diffusion.schedule import (
    Cosine,
    Karras,
    Linear,
    RectifiedFlow,
    ScaledLinear,
    Schedule,
    TableSchedule,
)

ZERO = {"zero_terminal_snr": True}
EVERY = [
    Linear(), ScaledLinear(), Cosine(), ScaledLinear(shift=2.0), Linear(**ZERO), Cosine(**ZERO),
    RectifiedFlow(), RectifiedFlow(shift=3.0), Karras(),
]  # fmt: skip


def test_time_zero_is_clean_and_noise_increases(schedule: Schedule) -> None:
    t = torch.arange(schedule.num_steps + 1.0)
    alpha, sigma = schedule.alpha(t).flatten(), schedule.sigma(t).flatten()
    assert (alpha[0], sigma[0]) == (1, 0)
    decreases = (
        alpha.diff() <= 0 if isinstance(schedule, Karras) else alpha.diff() < 0
    )  # alpha of Karras starts 2e-6 below 1, where float32 has too few digits
    assert decreases.all() and (sigma.diff() >= 0).all()
    assert (schedule.lam(t.double()).diff(dim=0) < 0).all()
    if isinstance(schedule, RectifiedFlow):
        torch.testing.assert_close(alpha + sigma, torch.ones_like(alpha))
    else:
        torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(alpha))
    assert schedule.has_zero_terminal_snr == (alpha[-1] == 0)


def test_it_is_monotonic_and_continuous_between_whole_times(schedule: Schedule) -> None:
    """On the same circle or line as at whole times, from the clean end to pure noise."""
    t = torch.linspace(0, schedule.num_steps, 7 * schedule.num_steps + 1, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t).flatten(), schedule.sigma(t).flatten()
    power = 1 if isinstance(schedule, RectifiedFlow) else 2
    torch.testing.assert_close(alpha**power + sigma**power, torch.ones_like(t), rtol=1e-14, atol=0)
    assert (schedule.lam(t).diff(dim=0) < 0).all()
    whole = torch.stack([alpha[::7], sigma[::7]])
    jump, step = torch.stack([alpha, sigma]).diff().abs(), whole.diff().abs().repeat_interleave(7, 1)
    assert (jump <= 1.0000001 * step).all(), "no step within an interval is larger than the interval"


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(EVERY),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(1, 5),
)
def test_time_is_the_inverse_of_lam(schedule: Schedule, share: float, dtype: torch.dtype, n: int) -> None:
    t = torch.full((n,), share * schedule.num_steps, dtype=dtype)
    time = schedule.time(schedule.lam(t).flatten())
    assert time.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float64 else 2e-3
    # Far below t = 1, the square of sigma is below the precision of alpha.
    torch.testing.assert_close(time, t, rtol=tolerance, atol=tolerance)


def test_time_inverts_lam_at_every_whole_time(schedule: Schedule) -> None:
    t = torch.arange(schedule.num_steps + 1, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.lam(t).flatten()), t, rtol=1e-9, atol=1e-9)


def test_time_is_clamped_for_lam_out_of_range(schedule: Schedule) -> None:
    t = schedule.time(torch.tensor([-300.0, 300.0, -math.inf, math.inf], dtype=torch.float64))
    torch.testing.assert_close(t, torch.tensor([1.0, 0.0, 1.0, 0.0]).double() * schedule.num_steps)


def test_between_whole_times_lam_is_linear() -> None:
    schedule, k = ScaledLinear(), torch.arange(1, 1000, dtype=torch.float64)
    want = 0.75 * schedule.lam(k) + 0.25 * schedule.lam(k + 1)
    torch.testing.assert_close(schedule.lam(k + 0.25), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "change", [lambda s: s, lambda s: s.half(), lambda s: s.bfloat16(), lambda s: s.double()]
)
def test_the_table_keeps_its_precision(change) -> None:  # noqa: ANN001
    schedule = change(ScaledLinear())
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    alpha_bars = (1 - roots.square()).cumprod(0)
    t = torch.arange(1, 1001, dtype=torch.float64)
    assert torch.equal(schedule.alpha(t).flatten(), alpha_bars.sqrt())
    assert torch.equal(schedule.sigma(t).flatten(), (1 - alpha_bars).sqrt())
    assert torch.equal(schedule.alpha(t.float()).flatten(), alpha_bars.sqrt().float())


def test_tables_first_used_in_inference_mode_can_train() -> None:
    schedule, t = ScaledLinear(), torch.tensor([10.0, 20.5])
    with torch.inference_mode():
        schedule.alpha(t)
    weight = torch.ones(2, 1, 1, 1, requires_grad=True)
    (weight * schedule.alpha(t)).sum().backward()
    torch.testing.assert_close(weight.grad, schedule.alpha(t))


def test_it_can_be_built_under_the_meta_device(schedule: Schedule) -> None:
    with torch.device("meta"):
        schedules = [type(schedule)(), ScaledLinear(**ZERO)]
    for built in schedules:
        assert built.alpha(torch.tensor([1.0])).item() > 0


@pytest.mark.parametrize(
    ("ours", "name", "start", "end"),
    [
        (Linear(), "linear", 1e-4, 0.02),
        (ScaledLinear(), "scaled_linear", 0.00085, 0.012),
        (ScaledLinear(1000, 0.0015, 0.0195), "scaled_linear", 0.0015, 0.0195),
        (Cosine(), "squaredcos_cap_v2", 1e-4, 0.02),
    ],
)
def test_the_table_equals_diffusers(ours: Schedule, name: str, start: float, end: float) -> None:
    peer = DDPMScheduler(1000, beta_start=start, beta_end=end, beta_schedule=name)
    t = torch.arange(1, 1001.0)
    torch.testing.assert_close(ours.alpha(t).flatten().square(), peer.alphas_cumprod, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("kind", [Linear, ScaledLinear, Cosine])
def test_zero_terminal_snr_equals_diffusers(kind: type[TableSchedule]) -> None:
    t = torch.arange(1001, dtype=torch.float64)
    alpha_bars = kind().alpha(t).flatten() ** 2
    theirs = (1 - rescale_zero_terminal_snr(1 - alpha_bars[1:] / alpha_bars[:-1])).cumprod(0)
    ours = kind(zero_terminal_snr=True)
    torch.testing.assert_close(ours.alpha(t[1:]).flatten() ** 2, theirs, rtol=1e-9, atol=1e-15)
    assert ours.alpha(t[-1:]).item() == 0 and ours.sigma(t[-1:]).item() == 1 and ours.has_zero_terminal_snr
    torch.testing.assert_close(ours.alpha(t[1:2]), kind().alpha(t[1:2]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [Linear, ScaledLinear, Cosine, RectifiedFlow])
def test_a_shift_multiplies_sigma_over_alpha(kind) -> None:  # noqa: ANN001
    t = torch.arange(1, 1000, dtype=torch.float64)
    plain, shifted = kind().lam(t), kind(shift=2.5).lam(t)
    torch.testing.assert_close(shifted, plain - math.log(2.5), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_equals_diffusers(shift: float) -> None:
    peer, ours = FlowMatchEulerDiscreteScheduler(1000, shift=shift), RectifiedFlow(1000, shift)
    t = torch.arange(1000, 0, -1.0)
    torch.testing.assert_close(ours.sigma(t).flatten(), peer.sigmas, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.network_time(t), peer.timesteps, rtol=1e-6, atol=1e-3)
    g = torch.Generator().manual_seed(0)
    z_0, eps = torch.randn(2, 3, 4, 2, 2, generator=g)
    at = torch.tensor([999.0, 500.0, 1.0])
    theirs = peer.scale_noise(z_0, peer.timesteps[(1000 - at).long()], eps)
    torch.testing.assert_close(ours.alpha(at) * z_0 + ours.sigma(at) * eps, theirs, rtol=1e-6, atol=1e-6)


def test_edm_equals_diffusers() -> None:
    peer, ours = EDMEulerScheduler(), Karras()
    peer.set_timesteps(1000)
    t = torch.arange(1000, 0, -1, dtype=torch.float64)
    ratio = (-ours.lam(t)).exp().flatten()
    torch.testing.assert_close(ratio.float(), peer.sigmas[:-1], rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.network_time(t).float(), peer.timesteps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("start", "end", "ratio"), [(0.00085, 0.012, 14.615), (0.0015, 0.0195, 83.8)])
def test_published_noise_at_the_end(start: float, end: float, ratio: float) -> None:
    schedule = ScaledLinear(1000, start, end)
    T = torch.tensor([1000.0])
    assert (schedule.sigma(T) / schedule.alpha(T)).item() == pytest.approx(ratio, rel=1e-3)
    assert schedule.lam(T).item() == pytest.approx(-torch.tensor(ratio).log().item(), abs=1e-3)


def test_published_networks_count_from_zero() -> None:
    assert ScaledLinear().network_time(torch.tensor([1.0, 1000.0])).tolist() == [0, 999]


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="0.02, 0.01"):
        Linear(1000, 0.02, 0.01)
    with pytest.raises(ValueError, match="max_beta"):
        Cosine(1000, 0.008, 1.0)
    with pytest.raises(ValueError, match="> 0 of sigma/alpha, not -1"):
        RectifiedFlow(shift=-1)
    with pytest.raises(ValueError, match="> 0 of sigma/alpha, not 0"):
        ScaledLinear(shift=0)
    with pytest.raises(ValueError, match="num_steps >= 2, not 1"):
        ScaledLinear(1, 0.01, 0.01, zero_terminal_snr=True)
    with pytest.raises(ValueError, match="num_steps >= 1, not 0"):
        RectifiedFlow(0)
    with pytest.raises(ValueError, match=r"sigma_min < sigma_max and rho > 0, not 1000, 80, 2, 7\.0"):
        Karras(1000, 80, 2)


def test_a_schedule_has_no_state(schedule: Schedule) -> None:
    assert not schedule.state_dict() and not list(schedule.buffers())
