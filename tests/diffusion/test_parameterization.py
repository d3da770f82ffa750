import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, V
from ldm.diffusion.schedule import Cosine, Karras, RectifiedFlow, ScaledLinear, Schedule, TableSchedule


def test_solving_the_target_returns_signal_and_noise(
    pair: tuple[Schedule, Parameterization],
) -> None:
    """At every whole t in 1..T, and between."""
    schedule, parameterization = pair
    g = torch.Generator().manual_seed(0)
    t = torch.arange(1, schedule.num_steps + 0.25, 0.5, dtype=torch.float64)
    z_0, eps = torch.randn(2, len(t), 1, 2, 2, dtype=torch.float64, generator=g)
    alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)
    y = parameterization.target(z_0, eps, alpha_t, sigma_t)
    solved_z_0, solved_eps = parameterization.solve(y, alpha_t * z_0 + sigma_t * eps, alpha_t, sigma_t)
    torch.testing.assert_close(solved_z_0, z_0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(solved_eps, eps, rtol=1e-9, atol=1e-9)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([Eps(), X0(), V(), Flow(), EDM(), EDM(1.7)]),
    st.floats(-9, 9),
    st.floats(0.1, 10),
    st.sampled_from([torch.float32, torch.float64]),
    st.tuples(*[st.integers(1, 4)] * 4),
    st.integers(0, 2**31),
)
def test_the_solve_is_the_inverse_for_any_coefficients(
    parameterization: Parameterization,
    lam: float,
    scale: float,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    seed: int,
) -> None:
    """For any alpha and sigma, variance preserving or not."""
    g = torch.Generator().manual_seed(seed)
    z_0, eps = torch.randn(2, *shape, dtype=dtype, generator=g)
    ratio = torch.full((shape[0], 1, 1, 1), lam, dtype=dtype)
    alpha_t, sigma_t = scale * (2 * ratio).sigmoid().sqrt(), scale * (-2 * ratio).sigmoid().sqrt()
    y = parameterization.target(z_0, eps, alpha_t, sigma_t)
    solved = parameterization.solve(y, alpha_t * z_0 + sigma_t * eps, alpha_t, sigma_t)
    det = parameterization.det(alpha_t, sigma_t).abs()
    size = max(z_0.abs().max().item(), eps.abs().max().item(), 1e-6)
    a, b = parameterization.coefficients(alpha_t, sigma_t)
    # A rounding error in z_t or y is divided by det.
    amplification = ((alpha_t + sigma_t) * (1 + a.abs() + b.abs()) / det).max().item()
    for value, true in zip(solved, (z_0, eps), strict=True):
        assert value.dtype == dtype and value.shape == shape
        torch.testing.assert_close(
            value, true, rtol=0, atol=20 * torch.finfo(dtype).eps * max(amplification, 1) * size
        )


def test_velocity_equals_diffusers() -> None:
    peer, schedule = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2"), Cosine()
    g = torch.Generator().manual_seed(0)
    z_0, eps = torch.randn(2, 5, 4, 2, 2, generator=g)
    t = torch.tensor([1, 10, 500, 900, 1000])
    alpha_t, sigma_t = schedule.alpha(t.float()), schedule.sigma(t.float())
    ours = V().target(z_0, eps, alpha_t, sigma_t)
    torch.testing.assert_close(ours, peer.get_velocity(z_0, eps, t - 1), rtol=1e-4, atol=1e-5)
    z_t = alpha_t * z_0 + sigma_t * eps
    torch.testing.assert_close(z_t, peer.add_noise(z_0, eps, t - 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sign", ["epsilon", "v_prediction"])
def test_edm_equals_diffusers(sign: str) -> None:
    """c_in, c_skip and c_out at x = z_t/alpha; the v_prediction of diffusers has the opposite sign of y."""
    peer, schedule = EDMEulerScheduler(prediction_type=sign), Karras()
    g = torch.Generator().manual_seed(0)
    z_t, y = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64, generator=g)
    t = torch.tensor([1.0, 300.0, 700.0, 1000.0], dtype=torch.float64)
    at = schedule.alpha(t), schedule.sigma(t)
    x, ratio = z_t / at[0], at[1] / at[0]
    torch.testing.assert_close(EDM().input_scale(*at) * z_t, peer.precondition_inputs(x, ratio))
    ours, _ = EDM().solve(y if sign == "epsilon" else -y, z_t, *at)
    torch.testing.assert_close(ours, peer.precondition_outputs(x, y, ratio), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_edm_keeps_input_and_target_at_variance_one(std: float) -> None:
    """As derived in Karras et al. (2022), appendix B.6; y and z_t are uncorrelated."""
    at = ScaledLinear().alpha(torch.arange(1, 1001.0)), ScaledLinear().sigma(torch.arange(1, 1001.0))
    a, b = EDM(std).coefficients(*at)
    ones = torch.ones_like(a)
    torch.testing.assert_close(a**2 * std**2 + b**2, ones, rtol=1e-5, atol=0)
    torch.testing.assert_close(EDM(std).input_scale(*at) ** 2 * (at[0] ** 2 * std**2 + at[1] ** 2), ones)
    torch.testing.assert_close(a * at[0] * std**2 + b * at[1], 0 * ones, rtol=0, atol=1e-6)
    if std == 1:
        v = V().coefficients(*at)
        torch.testing.assert_close((a, b), (-v[0], -v[1]), rtol=1e-5, atol=1e-6)


def test_flow_is_the_slope_of_the_line() -> None:
    """dz_t/du for z_t = (1 - u) z_0 + u eps, by a difference quotient."""
    schedule, (z_0, eps) = RectifiedFlow(1000), torch.randn(2, 1, 2, 2, 2, dtype=torch.float64)
    low, high = torch.tensor([[300.0], [301.0]], dtype=torch.float64)
    z = [schedule.alpha(t) * z_0 + schedule.sigma(t) * eps for t in (low, high)]
    at = schedule.alpha(low), schedule.sigma(low)
    torch.testing.assert_close(Flow().target(z_0, eps, *at), (z[1] - z[0]) * 1000, rtol=1e-9, atol=1e-9)


class PureNoise(TableSchedule):
    """Ends at alpha = 0."""

    def __init__(self) -> None:
        super().__init__(torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64))


def test_eps_is_refused_at_zero_terminal_snr() -> None:
    with pytest.raises(ValueError, match="alpha_T = 0 at T = 3"):
        Eps().check(PureNoise())
    V().check(PureNoise())
    X0().check(PureNoise())


def test_only_eps_at_zero_terminal_snr_is_refused(
    schedule: Schedule, parameterization: Parameterization
) -> None:
    if schedule.has_zero_terminal_snr and isinstance(parameterization, Eps):
        with pytest.raises(ValueError, match="alpha_T = 0 at T = 1000"):
            parameterization.check(schedule)
    else:
        parameterization.check(schedule)


def test_guidance_commutes_with_the_solve(parameterization: Parameterization) -> None:
    g = torch.Generator().manual_seed(1)
    schedule, t = Cosine(), torch.tensor([300.0])
    z_t, y, y_null = torch.randn(3, 1, 2, 2, 2, generator=g)
    at = schedule.alpha(t), schedule.sigma(t)
    mixed, _ = parameterization.solve(y_null + 3 * (y - y_null), z_t, *at)
    separate = [parameterization.solve(p, z_t, *at)[0] for p in (y, y_null)]
    torch.testing.assert_close(mixed, separate[1] + 3 * (separate[0] - separate[1]), rtol=1e-4, atol=1e-4)


def test_a_prediction_type_must_define_its_coefficients() -> None:
    with pytest.raises(TypeError, match="coefficients"):
        Parameterization()
    with pytest.raises(ValueError, match="std > 0, not 0"):
        EDM(0)
