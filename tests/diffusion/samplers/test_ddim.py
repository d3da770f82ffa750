"""DDIM and DDPM on z_0 ~ N(0, s²), whose exact denoiser and ODE solution are closed forms."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ldm.diffusion.parameterization import Eps, V
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.samplers.ddpm import ddpm
from ldm.diffusion.schedule import Cosine, ScaledLinear
from ldm.diffusion.times import leading, trailing

S = 0.5


def exact_denoiser(schedule):  # noqa: ANN001, ANN201
    """E[z_0 | z_t] = alpha s² z_t / (alpha² s² + sigma²), and the matching eps."""

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.expand(1)
        alpha, sigma = schedule.alpha(t).to(z_t), schedule.sigma(t).to(z_t)
        z_0 = alpha * S**2 * z_t / (alpha**2 * S**2 + sigma**2)
        return z_0, (z_t - alpha * z_0) / sigma

    return denoise


def no_noise(step: int) -> Tensor:
    raise AssertionError("an ODE sampler needs no noise")


def marginal_std(schedule, t: Tensor) -> Tensor:  # noqa: ANN001
    return (schedule.alpha(t).double() ** 2 * S**2 + schedule.sigma(t).double() ** 2).sqrt()


def test_first_order_on_the_exact_denoiser() -> None:
    schedule = Cosine(100_000)
    z_T = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    start, stop, errors = 80_000, 20_000, []
    for n in (10, 20, 40, 80):
        times = torch.linspace(start, stop, n + 1, dtype=torch.float64).round()
        *_, z = ddim(exact_denoiser(schedule), z_T, times, schedule, no_noise)
        truth = marginal_std(schedule, times[-1:]) / marginal_std(schedule, times[:1])
        errors.append((z - truth).abs().item())
    slope = math.log(errors[0] / errors[-1]) / math.log(8)
    assert 0.9 < slope < 1.1


@pytest.mark.parametrize("parameterization", [Eps(), V()])
def test_every_step_equals_diffusers(parameterization) -> None:  # noqa: ANN001
    schedule = ScaledLinear()
    kind = "epsilon" if isinstance(parameterization, Eps) else "v_prediction"
    peer = DDIMScheduler(
        1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, set_alpha_to_one=True, prediction_type=kind
    )
    peer.config.steps_offset = 0
    peer.set_timesteps(20)
    peer.alphas_cumprod = schedule.alphas[1:].double() ** 2
    g = torch.Generator().manual_seed(0)
    z_T = torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64)

    def network(z: Tensor) -> Tensor:
        return torch.tanh(z) * 0.7

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        at = t.expand(len(z_t))
        alpha, sigma = schedule.alpha(at).double(), (1 - schedule.alpha(at).double() ** 2).sqrt()
        return parameterization.solve(network(z_t), z_t, alpha, sigma)

    ours = ddim(denoise, z_T, leading(1000, 20), schedule, no_noise)
    theirs = z_T
    for t, z in zip(peer.timesteps, ours, strict=True):
        theirs = peer.step(network(theirs), t, theirs).prev_sample
        torch.testing.assert_close(z, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_variance_of_the_data(eta: float) -> None:
    schedule, g = Cosine(), torch.Generator().manual_seed(0)
    z_T = torch.randn(20_000, 1, 1, 1, generator=g)

    def noise(step: int) -> Tensor:
        return torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(step))

    *_, z = ddim(exact_denoiser(schedule), z_T, trailing(1000, 250), schedule, noise, eta)
    # The step into 0 returns the mean of z_0 given z_1, whose spread is almost that of the data.
    assert z.mean().item() == pytest.approx(0, abs=4 * S / 20_000**0.5)
    assert z.std().item() == pytest.approx(S, rel=0.03)


def test_ddpm_samples_the_posterior_of_its_paper() -> None:
    """Mean and variance of q(z_{t-1} | z_t, z_0) (Ho et al. 2020, eq. 7)."""
    schedule, t = ScaledLinear(), 700
    bars = schedule.alphas.double() ** 2
    beta = 1 - bars[t] / bars[t - 1]
    g = torch.Generator().manual_seed(0)
    z_0, eps, n = torch.randn(3, 1, 1, 2, 2, generator=g, dtype=torch.float64)
    z_t = bars[t].sqrt() * z_0 + (1 - bars[t]).sqrt() * eps
    times = torch.tensor([t, t - 1.0])
    (z_s,) = ddpm(lambda z, _: (z_0, eps), z_t, times, schedule, lambda step: n)
    mean = (bars[t - 1].sqrt() * beta * z_0 + (1 - beta).sqrt() * (1 - bars[t - 1]) * z_t) / (1 - bars[t])
    variance = (1 - bars[t - 1]) / (1 - bars[t]) * beta
    torch.testing.assert_close(z_s, mean + variance.sqrt() * n, rtol=1e-4, atol=1e-4)


def test_eta_is_at_most_1() -> None:
    with pytest.raises(ValueError, match="0..1, not 2"):
        next(
            ddim(
                exact_denoiser(Cosine()),
                torch.zeros(1, 1, 1, 1),
                trailing(1000, 2),
                Cosine(),
                no_noise,
                eta=2,
            )
        )
