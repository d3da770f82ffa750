import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.diffusion import parameterization as p
from ldm.diffusion.objective import diffusion_loss
from ldm.diffusion.parameterization import Parameterization
from ldm.diffusion.schedule import Cosine, ScaledLinear
from ldm.diffusion.times import UniformTimes
from ldm.diffusion.weighting import EDM, SNR, LearnedUncertainty, MinSNR, SoftMinSNR, Uniform, Weighting
from ldm.typing import Conditioning

TYPES = [p.Eps(), p.X0(), p.V(), p.Flow(), p.EDM(0.5)]
Z_0_WEIGHTS = {
    "SNR": (SNR, lambda snr: snr),
    "min-SNR": (MinSNR, lambda snr: snr.clamp(max=5)),
    "soft-min-SNR": (SoftMinSNR, lambda snr: 1 / (1 / snr + 1 / 4)),
    "EDM": (EDM, lambda snr: (1 / snr + 0.25) / (0.25 / snr)),
}
"""The weights of the error in z_0, as in their papers: SNR = 1/r², std 0.5, gamma 5 and 4."""


def at_lam(lam: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    lam = lam[:, None, None, None]
    return (2 * lam).sigmoid().sqrt(), (-2 * lam).sigmoid().sqrt()


def test_min_snr_gives_equal_errors_in_z_0_equal_weight(parameterization: Parameterization) -> None:
    schedule, t = Cosine(), torch.arange(1, 1000.0)
    alpha_t, sigma_t = schedule.alpha(t).double(), schedule.sigma(t).double()
    weight = MinSNR(parameterization, gamma=5.0)(alpha_t, sigma_t)
    # An error of 1 in y, as an error in z_0:
    z_0_error = (sigma_t / parameterization.det(alpha_t, sigma_t)).flatten()
    snr = (alpha_t / sigma_t).square().flatten()
    torch.testing.assert_close(weight / z_0_error.square(), snr.clamp(max=5), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", Z_0_WEIGHTS)
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(TYPES), st.floats(-15, 15), st.integers(1, 4), st.integers(0, 2**31))
def test_the_loss_is_the_weighted_error_in_z_0_for_every_prediction_type(
    name: str, parameterization: Parameterization, lam: float, n: int, seed: int
) -> None:
    """The weighted error in y equals the weighted error in the z_0 solved from it."""
    kind, weight = Z_0_WEIGHTS[name]
    alpha_t, sigma_t = at_lam(torch.full((n,), lam, dtype=torch.float64))
    g = torch.Generator().manual_seed(seed)
    z_0, eps, wrong = torch.randn(3, n, 2, 3, 3, dtype=torch.float64, generator=g)
    y = parameterization.target(z_0, eps, alpha_t, sigma_t)
    # A tiny error in z_0 would be lost in the subtraction of two z_0: solve for the error itself.
    z_0_error, _ = parameterization.solve(wrong, torch.zeros_like(z_0), alpha_t, sigma_t)
    loss = kind(parameterization)(alpha_t, sigma_t) * ((y + wrong) - y).square().mean((1, 2, 3))
    expected = weight((alpha_t / sigma_t).square()).flatten() * z_0_error.square().mean((1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [MinSNR, SoftMinSNR, EDM])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_are_finite(kind, dtype: torch.dtype, parameterization: Parameterization) -> None:  # noqa: ANN001
    """SNR from e^-40 to e^40; only EDM grows with SNR, by definition, for eps and z_0 prediction."""
    alpha_t, sigma_t = at_lam(torch.linspace(-20, 20, 81, dtype=dtype))
    weight = kind(parameterization)(alpha_t, sigma_t)
    assert weight.isfinite().all() and (weight >= 0).all() and weight.shape == (81,)
    if not (kind is EDM and isinstance(parameterization, p.X0 | p.Eps)):
        assert weight.max() < 100


@pytest.mark.parametrize("kind", [SNR, MinSNR, SoftMinSNR, EDM])
@pytest.mark.parametrize("parameterization", TYPES[1:], ids=lambda p: type(p).__name__)
def test_pure_noise_has_a_finite_weight(kind, parameterization: Parameterization) -> None:  # noqa: ANN001
    """At alpha_T = 0 itself: 0 by SNR, min-SNR and soft-min-SNR, positive by EDM; never nan."""
    schedule, T = Cosine(zero_terminal_snr=True), torch.tensor([1000.0])
    weight = kind(parameterization)(schedule.alpha(T), schedule.sigma(T)).item()
    assert (weight > 0 and math.isfinite(weight)) if kind is EDM else weight == 0


@pytest.mark.parametrize("kind", [SNR, MinSNR, SoftMinSNR])
def test_a_weight_of_0_where_sampling_starts_is_refused(kind) -> None:  # noqa: ANN001
    zero = ScaledLinear(zero_terminal_snr=True)
    with pytest.raises(ValueError, match="alpha_T = 0 at T = 1000, .* weight is 0 .*weighting.least=0.005"):
        kind(p.V()).check(zero)
    with pytest.raises(ValueError, match="weight is 0"):
        LearnedUncertainty(kind(p.V())).check(zero)
    kind(p.V()).check(ScaledLinear())
    for fine in (Uniform(), EDM(p.V()), MinSNR(p.V(), least=0.005)):
        fine.check(zero)


def test_min_snr_with_a_least_weight_learns_pure_noise_too(parameterization: Parameterization) -> None:
    alpha_t, sigma_t = at_lam(torch.tensor([-12.0, -1.0, 3.0], dtype=torch.float64))
    least, plain = (MinSNR(parameterization, 5.0, c)(alpha_t, sigma_t) for c in (0.005, 0.0))
    snr = (alpha_t / sigma_t).square().flatten()
    torch.testing.assert_close(least / plain, snr.clamp(0.005, 5) / snr.clamp(max=5))
    if not isinstance(parameterization, p.Eps):
        pure = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        want = 0.005 / parameterization.det(*pure).square().item()
        assert MinSNR(parameterization, 5.0, 0.005)(*pure).item() == pytest.approx(want)


def test_published_equivalences() -> None:
    """SNR on z_0's error is the simple loss, EDM's is 1 for its own y, min-SNR as written for eps and v."""
    at = at_lam(torch.linspace(-6, 6, 25, dtype=torch.float64))
    snr, one = (at[0] / at[1]).square().flatten(), torch.ones(25, dtype=torch.float64)
    torch.testing.assert_close(SNR(p.Eps())(*at), one)
    torch.testing.assert_close(EDM(p.EDM(0.7), 0.7)(*at), one)
    torch.testing.assert_close(MinSNR(p.Eps())(*at), snr.clamp(max=5) / snr)
    torch.testing.assert_close(MinSNR(p.V())(*at), snr.clamp(max=5) / (snr + 1))
    torch.testing.assert_close(SoftMinSNR(p.X0())(*at), 4 * snr / (snr + 4))


def test_uniform_is_one() -> None:
    one = torch.ones(3, 1, 1, 1)
    assert Uniform()(one, one).tolist() == [1, 1, 1]


def test_invalid_arguments_are_refused(parameterization: Parameterization) -> None:
    with pytest.raises(ValueError, match="not 0"):
        MinSNR(parameterization, gamma=0)
    with pytest.raises(ValueError, match="0 <= least < gamma, not 1 and 2"):
        MinSNR(parameterization, 1, 2)
    with pytest.raises(ValueError, match="gamma > 0, not -1"):
        SoftMinSNR(parameterization, -1)
    with pytest.raises(ValueError, match="std > 0, not 0"):
        EDM(parameterization, 0)
    with pytest.raises(ValueError, match="channels >= 1, not 0"):
        LearnedUncertainty(Uniform(), 0)


@pytest.mark.parametrize(("inner", "near"), [(Uniform(), 0.05), (MinSNR(p.V()), 0.15)])
def test_the_uncertainty_starts_at_0_and_learns_the_log_of_the_loss(inner: Weighting, near: float) -> None:
    """The minimum of E/exp(u) + u is u = log E at every noise level; the corner of min-SNR is smoothed."""
    learned, lam = LearnedUncertainty(inner), torch.linspace(-3, 3, 64)
    at, error = at_lam(lam), 0.3 + torch.sigmoid(lam)
    assert torch.equal(learned.loss(error, *at), inner.loss(error, *at))
    assert learned.fixed is inner and torch.equal(learned(*at), inner(*at))
    optimizer = torch.optim.LBFGS(learned.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = learned.loss(error, *at).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(learned.uncertainty(*at), inner.loss(error, *at).log(), rtol=0, atol=near)


def test_the_uncertainty_is_finite_at_both_ends_and_the_same_in_every_process() -> None:
    first, second = LearnedUncertainty(Uniform()), LearnedUncertainty(Uniform())
    assert torch.equal(first.frequencies, second.frequencies) and list(first.state_dict()) == ["weight"]
    torch.nn.init.ones_(first.weight)
    ends = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    assert first.uncertainty(*ends).isfinite().all()


def test_the_objective_is_the_weighted_error_of_each_sample() -> None:
    g = torch.Generator().manual_seed(0)
    z_0, eps = torch.randn(2, 5, 4, 2, 2, generator=g)
    u, weighting, schedule = torch.rand(5, generator=g), MinSNR(p.V()), ScaledLinear()
    at = z_0, Conditioning(), eps, u, schedule, p.V(), weighting, UniformTimes(1000)
    losses = diffusion_loss(lambda z, t, c: 0 * z, *at)
    t = UniformTimes(1000)(u)
    target = p.V().target(z_0, eps, schedule.alpha(t), schedule.sigma(t))
    want = weighting(schedule.alpha(t), schedule.sigma(t)) * target.square().mean((1, 2, 3))
    assert torch.equal(losses, want)


def test_input_noise_reaches_the_network_but_not_the_target() -> None:
    g = torch.Generator().manual_seed(0)
    z_0, eps, input_noise = torch.randn(3, 2, 4, 2, 2, generator=g)
    schedule, u = ScaledLinear(), torch.tensor([0.2, 0.7])
    t = UniformTimes(1000)(u)

    def network(z_t, time, cond):  # noqa: ANN001, ANN202
        z = schedule.alpha(t) * z_0 + schedule.sigma(t) * (eps + input_noise)
        torch.testing.assert_close(z_t, z)
        return eps

    at = schedule, p.Eps(), Uniform(), UniformTimes(1000)
    assert diffusion_loss(network, z_0, Conditioning(), eps, u, *at, input_noise).tolist() == [0, 0]
