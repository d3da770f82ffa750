import pytest
import torch
from diffusers import DDPMScheduler

from ldm.diffusion.parameterization import X0, Eps, Parameterization, V
from ldm.diffusion.schedule import Cosine, Schedule


def test_solving_the_target_gives_back_signal_and_noise(
    parameterization: Parameterization, schedule: Schedule
) -> None:
    g = torch.Generator().manual_seed(0)
    t = torch.arange(1, schedule.num_steps + 1.0)
    z_0, eps = torch.randn(2, len(t), 1, 2, 2, dtype=torch.float64, generator=g)
    alpha_t, sigma_t = schedule.alpha(t).double(), schedule.sigma(t).double()
    # Coefficients read from the fp32 table lie on no exact circle; the solve does not need one.
    y = parameterization.target(z_0, eps, alpha_t, sigma_t)
    got_z_0, got_eps = parameterization.solve(y, alpha_t * z_0 + sigma_t * eps, alpha_t, sigma_t)
    torch.testing.assert_close(got_z_0, z_0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got_eps, eps, rtol=1e-6, atol=1e-6)


def test_velocity_is_the_peers() -> None:
    peer, schedule = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2"), Cosine()
    g = torch.Generator().manual_seed(0)
    z_0, eps = torch.randn(2, 5, 4, 2, 2, generator=g)
    t = torch.tensor([1, 10, 500, 900, 1000])
    ours = V().target(z_0, eps, schedule.alpha(t.float()), schedule.sigma(t.float()))
    torch.testing.assert_close(ours, peer.get_velocity(z_0, eps, t - 1), rtol=1e-4, atol=1e-5)


class PureNoise(Schedule):
    """Ends at alpha = 0."""

    def __init__(self) -> None:
        super().__init__(torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64))


def test_eps_is_refused_at_zero_terminal_snr() -> None:
    with pytest.raises(ValueError, match="alpha_T = 0 at T = 3"):
        Eps().check(PureNoise())
    V().check(PureNoise())
    X0().check(PureNoise())


def test_guidance_commutes_with_the_solve(parameterization: Parameterization) -> None:
    g = torch.Generator().manual_seed(1)
    schedule, t = Cosine(), torch.tensor([300.0])
    z_t, y, y_null = torch.randn(3, 1, 2, 2, 2, generator=g)
    at = schedule.alpha(t), schedule.sigma(t)
    mixed, _ = parameterization.solve(y_null + 3 * (y - y_null), z_t, *at)
    each = [parameterization.solve(p, z_t, *at)[0] for p in (y, y_null)]
    torch.testing.assert_close(mixed, each[1] + 3 * (each[0] - each[1]), rtol=1e-4, atol=1e-4)
