"""The order of convergence of ODE samplers, and the distribution of stochastic ones."""

import pytest
import torch

from ldm.diffusion.samplers import dpmpp_3m
from ldm.diffusion.schedule import RectifiedFlow, ScaledLinear, Schedule
from tests.support.exact_samplers import (  # fmt: skip
    ODE,
    SDE,
    exact_denoiser,
    fit_order,
    halve_second,
    marginal,
    measure_errors,
    ode_solution,
    seeded_noise,
    times_even_in_lam,
)

EXPECTED = {
    "ddim": 1, "euler": 1, "plms": 2, "heun": 2, "dpm_solver_2": 2, "dpmpp_2s": 2, "dpmpp_2m": 2,
    "dpm_solver_3": 3, "dpmpp_3m": 3, "unipc-1": 2, "unipc-2 bh1": 3, "unipc-2 bh2": 3, "unipc-3 bh2": 4,
}  # fmt: skip
"""UniPC-p with its corrector has order p + 1. UniPC-3 bh1 is absent: its error crosses 0 near N = 160."""


@pytest.fixture(params=[ScaledLinear, RectifiedFlow], scope="module")
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return request.param(1000)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_error_has_the_order_of_the_sampler(name: str, schedule: Schedule) -> None:
    """3M starts with an exact history, as its first two steps have lower orders."""
    errors = measure_errors(ODE[name], schedule, exact_steps=2 if name == "dpmpp_3m" else 0)
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert fit_order({n: errors[n] for n in (80, 160)}) == pytest.approx(EXPECTED[name], abs=0.12)


def test_3m_as_published_has_order_2(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    """With h² z_0''/2 in the place of h² z_0'', as in diffusers (test_parity.py)."""
    monkeypatch.setattr(dpmpp_3m, "_derivatives", halve_second(dpmpp_3m._derivatives))
    measured = fit_order(measure_errors(dpmpp_3m.dpmpp_3m, schedule, exact_steps=2, steps=(80, 160)))
    assert measured == pytest.approx(2, abs=0.12)


@pytest.mark.parametrize("name", SDE)
def test_stochastic_samplers_have_the_marginal_distribution(name: str, schedule: Schedule) -> None:
    """Mean and variance of 20,000 samples at t > 0."""
    n, times = 20_000, times_even_in_lam(schedule, 200)
    (mean, std), (mean_s, std_s) = marginal(schedule, times[0]), marginal(schedule, times[-1])
    z_T = mean + std * torch.randn(
        n, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    *_, z = SDE[name](exact_denoiser(schedule), z_T, times, schedule, seeded_noise((n, 1, 1, 1)))
    assert z.mean().item() == pytest.approx(mean_s, abs=4 * std_s / n**0.5)
    assert z.var().item() == pytest.approx(std_s**2, rel=4 * (2 / n) ** 0.5 + 0.01)


def test_the_exact_solution_solves_the_ode(schedule: Schedule) -> None:
    """dz = (alpha' z_0 + sigma' eps) dt, by finite differences."""
    t = torch.tensor([300.0, 300.001], dtype=torch.float64)
    z = torch.full((1, 1, 1, 1), 3.0, dtype=torch.float64)
    z_0, eps = exact_denoiser(schedule)(z, t[:1])
    d_alpha, d_sigma = (f(t).diff(dim=0) for f in (schedule.alpha, schedule.sigma))
    d_z = ode_solution(schedule, z, t[0], t[1]) - z
    torch.testing.assert_close(d_z, d_alpha * z_0 + d_sigma * eps, rtol=1e-3, atol=0)
