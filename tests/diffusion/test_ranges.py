"""Every argument of `ldm.diffusion` is refused outside of its range, with the range and the value."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from ldm.diffusion import guidance, ideal_denoiser, parameterization, times, weighting
from ldm.diffusion.guidance import Denoise
from ldm.diffusion.parameterization import Eps, V
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.samplers.dpmpp_2m import dpmpp_2m
from ldm.diffusion.samplers.edm import edm
from ldm.diffusion.samplers.euler_ancestral import euler_ancestral
from ldm.diffusion.samplers.unipc import bh2, unipc
from ldm.diffusion.schedule import (
    Cosine,
    Karras,
    Linear,
    RectifiedFlow,
    ScaledLinear,
    TableSchedule,
    rescale_zero_terminal_snr,
    shift_snr,
)
from ldm.diffusion.tasks.img2img import img2img, remaining_times
from ldm.diffusion.tasks.inpaint import resample
from ldm.diffusion.tasks.invert import invert
from ldm.typing import Conditioning

SCHEDULE, Z = ScaledLinear(), torch.zeros(1, 1, 1, 1)
ALPHA_BARS = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)


def identity(z_t: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return z_t, z_t


def run(function: Callable[..., Any], at: tuple[float, ...] = (1000, 500, 0), /, **options: Any) -> None:
    list(function(identity, Z, torch.tensor(at).float(), SCHEDULE, lambda i: Z, **options))


def guide(variant: Callable[..., Denoise], **options: Any) -> None:
    network = lambda z, t, c: z  # noqa: E731
    variant(guidance.Prediction(network, SCHEDULE, V(), Conditioning(), Conditioning()), 2.0, **options)


REFUSED = {
    "Linear num_steps": (partial(Linear, 0), "num_steps >= 1 .* not 0,"),
    "Linear beta_start": (partial(Linear, beta_start=0.0), "0 < beta_start <= beta_end < 1, not 1000, 0.0"),
    "ScaledLinear beta_end": (partial(ScaledLinear, beta_end=1.0), "beta_end < 1, not 1000, 0.00085, 1.0"),
    "Cosine num_steps": (partial(Cosine, 0), "num_steps >= 1, .* not 0"),
    "Cosine offset": (partial(Cosine, offset=-0.1), "offset >= 0 .* not 1000, -0.1"),
    "Cosine max_beta": (partial(Cosine, max_beta=1.5), "0 < max_beta < 1, .* 1.5"),
    "Cosine shift": (partial(Cosine, shift=0.0), "> 0 of sigma/alpha, not 0.0"),
    "RectifiedFlow num_steps": (partial(RectifiedFlow, -1), "num_steps >= 1, not -1"),
    "RectifiedFlow shift": (partial(RectifiedFlow, shift=-2.0), "> 0 of sigma/alpha, not -2.0"),
    "Karras num_steps": (partial(Karras, 1), "num_steps >= 2, .* not 1,"),
    "Karras sigma_min": (partial(Karras, sigma_min=0.0), "0 < sigma_min < sigma_max .* not 1000, 0.0"),
    "Karras sigma_max": (partial(Karras, sigma_max=0.001), "sigma_min < sigma_max .* 0.001"),
    "Karras rho": (partial(Karras, rho=0.0), "rho > 0, .* 0.0"),
    "TableSchedule rising": (
        partial(TableSchedule, ALPHA_BARS.flip(0)),
        r"within \[0, 1\), not \[0.1",
    ),
    "TableSchedule of 1": (
        partial(TableSchedule, ALPHA_BARS / 0.9),
        r"within \[0, 1\), not \[1.0",
    ),
    "rescale_zero_terminal_snr": (
        partial(rescale_zero_terminal_snr, ALPHA_BARS[:1]),
        "num_steps >= 2, not 1",
    ),
    "shift_snr": (partial(shift_snr, ALPHA_BARS, 0.0), "> 0 of sigma/alpha, not 0.0"),
    "parameterization.EDM": (partial(parameterization.EDM, 0.0), "std > 0, not 0.0"),
    "weighting.EDM": (partial(weighting.EDM, V(), -1.0), "std > 0, not -1.0"),
    "MinSNR gamma": (partial(weighting.MinSNR, V(), 0.0), "gamma > 0 .* not 0.0"),
    "MinSNR least": (partial(weighting.MinSNR, V(), 5.0, 6.0), "least < gamma, not 5.0 and 6.0"),
    "SoftMinSNR": (partial(weighting.SoftMinSNR, V(), -4.0), "gamma > 0, not -4.0"),
    "LearnedUncertainty": (
        partial(weighting.LearnedUncertainty, weighting.Uniform(), 0),
        "channels >= 1, not 0",
    ),
    "UniformTimes": (partial(times.UniformTimes, 0), "num_steps >= 1, not 0"),
    "LogitNormalTimes num_steps": (partial(times.LogitNormalTimes, 0), "num_steps >= 1, not 0"),
    "LogitNormalTimes std": (partial(times.LogitNormalTimes, 10, 0.0, 0.0), "std > 0, not 0.0"),
    "LogNormalTimes": (partial(times.LogNormalTimes, SCHEDULE, 0.0, -1.0), "std > 0, not -1.0"),
    "ShiftedTimes num_steps": (
        partial(times.ShiftedTimes, times.UniformTimes(10), 0),
        "num_steps >= 1, not 0",
    ),
    "ShiftedTimes shift": (partial(times.ShiftedTimes, times.UniformTimes(10), 10, 0.0), "> 0, not 0.0"),
    "stratify": (
        partial(times.stratify, torch.rand(2), torch.arange(2), -1),
        r"strata >= 1 .* not -1",
    ),
    **{
        f"{spacing.__name__} {steps}": (partial(spacing, SCHEDULE, steps), rf"in 1\.\.1000, not {steps}")
        for spacing in (times.leading, times.trailing, times.linspace, times.karras, times.exponential)
        for steps in (0, 1001)
    },
    "karras rho": (partial(times.karras, SCHEDULE, 5, rho=0.0), "rho > 0, not 0.0"),
    "explicit": (partial(times.explicit, SCHEDULE, 2, [1001, 5]), r"within 1\.\.1000, not \[1001, 5\]"),
    "rescaled_cfg": (
        partial(guide, guidance.rescaled_cfg, phi=-0.1),
        r"guidance.phi must be in 0\.\.1, not -0.1",
    ),
    "interval_cfg low": (partial(guide, guidance.interval_cfg, low=-1.0), "0 <= low < high, not -1.0"),
    "interval_cfg high": (partial(guide, guidance.interval_cfg, high=0.1), "low < high, not 0.28, 0.1"),
    "ddim eta": (partial(run, ddim, eta=1.5), r"0\.\.1, not 1.5"),
    "ddim times beyond T": (partial(run, ddim, (1001, 500, 0)), r"in 0\.\.1000, not \[1001"),
    "ddim times below 0": (partial(run, ddim, (500, 0, -1)), r"in 0\.\.1000, not \[500.0, 0.0, -1.0\]"),
    "euler_ancestral": (partial(run, euler_ancestral, eta=-0.5), r"0\.\.1, not -0.5"),
    "dpmpp_2m": (partial(run, dpmpp_2m, eta=2.0), r"0\.\.1, not 2.0"),
    "unipc": (partial(run, unipc, order=0, b=bh2), "1, 2 or 3, not 0"),
    "edm churn": (partial(run, edm, churn=-1.0), "churn >= 0, .* not -1.0"),
    "edm churn_max": (partial(run, edm, churn_max=0.01), "churn_min <= churn_max .* 0.01"),
    "edm inflation": (partial(run, edm, inflation=0.0), "inflation > 0, .* 0.0"),
    "img2img 0": (partial(run, img2img, sampler=ddim, z_0=Z, strength=0.0), r"\(0, 1\], not 0.0"),
    "remaining_times": (partial(remaining_times, torch.arange(3.0), 1.5), r"\(0, 1\], not 1.5"),
    "resample repeats": (
        partial(run, resample, sampler=ddim, repeats=0, jump=1),
        "repeats >= 1 .* not 0 and 1",
    ),
    "resample jump": (partial(run, resample, sampler=ddim, repeats=1, jump=0), "jump >= 1, not 1 and 0"),
    "invert": (
        lambda: list(invert(identity, Z, torch.tensor([500.0, 0.0]), SCHEDULE, -1)),
        "refinements >= 0, not -1",
    ),
    "mixture": (
        partial(ideal_denoiser.gaussian_mixture_denoiser, SCHEDULE, ideal_denoiser.two_moons(4), 0.0),
        "std > 0, not 0.0",
    ),
    "two_moons": (partial(ideal_denoiser.two_moons, 3), "k >= 4 points, not 3"),
    "sample_mixture": (
        partial(ideal_denoiser.sample_mixture, ideal_denoiser.two_moons(4), 0.1, 0, torch.Generator()),
        "n >= 1, not 0",
    ),
    "energy_distance": (
        partial(ideal_denoiser.energy_distance, torch.zeros(1, 2), torch.zeros(3, 2)),
        ">= 2 samples of each, not 1 and 3",
    ),
    "eps at zero terminal SNR": (
        partial(Eps().check, ScaledLinear(zero_terminal_snr=True)),
        "alpha_T = 0 at T = 1000",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_out_of_range_are_refused_with_range_and_value(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
