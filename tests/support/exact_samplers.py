"""Exact denoiser, ODE solution and errors of samplers on z_0 ~ N(MEAN, STD²)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.samplers.ddpm import ddpm
from ldm.diffusion.samplers.dpm_solver_2 import dpm_solver_2
from ldm.diffusion.samplers.dpm_solver_3 import dpm_solver_3
from ldm.diffusion.samplers.dpmpp_2m import dpmpp_2m
from ldm.diffusion.samplers.dpmpp_2m_sde import dpmpp_2m_sde
from ldm.diffusion.samplers.dpmpp_2s import dpmpp_2s
from ldm.diffusion.samplers.dpmpp_3m import dpmpp_3m
from ldm.diffusion.samplers.edm import edm
from ldm.diffusion.samplers.euler import euler
from ldm.diffusion.samplers.euler_ancestral import euler_ancestral
from ldm.diffusion.samplers.heun import heun
from ldm.diffusion.samplers.plms import plms
from ldm.diffusion.samplers.unipc import bh1, bh2, unipc
from ldm.diffusion.schedule import Schedule

MEAN, STD = 0.3, 0.5
START, STOP = -2.0, 2.0
"""lam of the interval in which orders are measured: sigma/alpha from 7.4 to 0.14."""

ODE: dict[str, Sampler] = {
    "ddim": ddim,
    "euler": euler,
    "plms": plms,
    "heun": heun,
    "dpm_solver_2": dpm_solver_2,
    "dpm_solver_3": dpm_solver_3,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "unipc-1": partial(unipc, order=1, b=bh2),
    "unipc-2 bh1": partial(unipc, order=2, b=bh1),
    "unipc-2 bh2": partial(unipc, order=2, b=bh2),
    "unipc-3 bh1": partial(unipc, order=3, b=bh1),
    "unipc-3 bh2": partial(unipc, order=3, b=bh2),
}
SDE: dict[str, Sampler] = {
    "ddim, eta 0.5": partial(ddim, eta=0.5),
    "ddpm": ddpm,
    "euler_ancestral": euler_ancestral,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m, eta 0.5": partial(dpmpp_2m, eta=0.5),
    "edm": partial(edm, churn=80.0, churn_min=0.0, churn_max=math.inf, inflation=1.0),
}


def exact_denoiser(schedule: Schedule) -> Denoise:
    """E[z_0 | z_t] = mean + alpha std² (z_t - alpha mean) / (alpha² std² + sigma²), and the matching eps."""

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.alpha(t.reshape(1)).to(z_t), schedule.sigma(t.reshape(1)).to(z_t)
        z_0 = MEAN + alpha * STD**2 * (z_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return z_0, (z_t - alpha * z_0) / sigma

    return denoise


def marginal(schedule: Schedule, t: Tensor) -> tuple[float, float]:
    """Return the mean and standard deviation of z_t."""
    alpha, sigma = schedule.alpha(t.double().reshape(1)).item(), schedule.sigma(t.double().reshape(1)).item()
    return alpha * MEAN, math.hypot(alpha * STD, sigma)


def ode_solution(schedule: Schedule, z_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return z_s of the ODE: as many standard deviations from the mean as z_t."""
    (mean_t, std_t), (mean_s, std_s) = marginal(schedule, t), marginal(schedule, s)
    return mean_s + std_s / std_t * (z_t - mean_t)


def no_noise(step: int) -> Tensor:
    raise AssertionError("an ODE sampler needs no noise")


def times_even_in_lam(schedule: Schedule, steps: int) -> Tensor:
    """Return real times with equal steps in lam from START to STOP."""
    return schedule.time(torch.linspace(START, STOP, steps + 1, dtype=torch.float64))


def measure_error(sampler: Sampler, schedule: Schedule, steps: int, exact_steps: int = 0) -> float:
    """Return the error at STOP of a trajectory that starts one std above the mean.

    Args:
        exact_steps: steps after which z_t is set to the exact solution. A multistep sampler then has an exact
            history from its first steps, which are of lower order.
    """
    times = times_even_in_lam(schedule, steps)
    mean, std = marginal(schedule, times[0])
    z_T = torch.full((1, 1, 1, 1), mean + std, dtype=torch.float64)
    denoise, calls = exact_denoiser(schedule), 0

    def denoise_from_exact(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return denoise(ode_solution(schedule, z_T, times[0], t) if calls <= exact_steps + 1 else z_t, t)

    trajectory = sampler(denoise_from_exact, z_T, times, schedule, no_noise)
    for step, z in enumerate(trajectory):
        if step < exact_steps:
            z.copy_(ode_solution(schedule, z_T, times[0], times[step + 1]))
    return (z - ode_solution(schedule, z_T, times[0], times[-1])).abs().item()


def fit_order(errors: dict[int, float]) -> float:
    """Return the least-squares slope of log error over log step length."""
    x = torch.tensor([-math.log(n) for n in errors], dtype=torch.float64)
    y = torch.tensor([math.log(e) for e in errors.values()], dtype=torch.float64)
    x = x - x.mean()
    return ((x * y).sum() / x.square().sum()).item()


def measure_errors(
    sampler: Sampler, schedule: Schedule, exact_steps: int = 0, steps: tuple[int, ...] = (10, 20, 40, 80, 160)
) -> dict[int, float]:
    """Return the error for each number of steps."""
    return {n: measure_error(sampler, schedule, n, exact_steps) for n in steps}


def seeded_noise(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Callable[[int], Tensor]:
    """Return a noise function that is seeded with the step."""
    return lambda step: torch.randn(shape, generator=torch.Generator().manual_seed(1000 + step), dtype=dtype)


def halve_second(derivatives: Callable[..., Any]) -> Callable[..., Any]:
    """Return the derivatives of DPM-Solver++(3M) as published: with half of the second one."""

    def published(history: object) -> tuple[Any, Any]:
        first, second = derivatives(history)
        return first, second / 2

    return published
