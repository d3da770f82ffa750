"""Step-by-step parity with the schedulers of `diffusers`, in double precision.

Both sides use the same times and noise, and the scheduler ("peer") gets our z_t before every step: some
schedulers round to float32, so that the difference is that of a single step in float32.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ldm.diffusion.guidance import Denoise
from ldm.diffusion.parameterization import X0, Eps, Flow, Parameterization, V
from ldm.diffusion.samplers import Sampler, dpmpp_3m
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.samplers.ddpm import ddpm
from ldm.diffusion.samplers.dpm_solver_2 import dpm_solver_2
from ldm.diffusion.samplers.dpmpp_2m import dpmpp_2m
from ldm.diffusion.samplers.dpmpp_2m_sde import dpmpp_2m_sde
from ldm.diffusion.samplers.dpmpp_2s import dpmpp_2s
from ldm.diffusion.samplers.edm import edm
from ldm.diffusion.samplers.euler import euler
from ldm.diffusion.samplers.euler_ancestral import euler_ancestral
from ldm.diffusion.samplers.heun import heun
from ldm.diffusion.samplers.plms import plms
from ldm.diffusion.samplers.unipc import bh1, bh2, unipc
from ldm.diffusion.schedule import RectifiedFlow, ScaledLinear, Schedule
from ldm.diffusion.times import leading
from tests.support.exact_samplers import halve_second, no_noise, seeded_noise

SHAPE = (2, 3, 4, 4)
VP = {"epsilon": Eps(), "v_prediction": V(), "sample": X0()}
TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TIMES = leading(1000, 20).double()

close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)


def network(z_t: Tensor) -> Tensor:
    """Any function will do: both sides use the same."""
    return 0.7 * torch.tanh(z_t)


def denoiser(parameterization: Parameterization, schedule: Schedule) -> Denoise:
    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double().expand(len(z_t))
        return parameterization.solve(network(z_t), z_t, schedule.alpha(t), schedule.sigma(t))

    return denoise


def ratio(schedule: Schedule, times: Tensor) -> Tensor:
    """Return sigma/alpha, the sigma of diffusers."""
    return (schedule.sigma(times) / schedule.alpha(times)).flatten()


def alpha(schedule: Schedule, t: Tensor) -> float:
    return schedule.alpha(t.reshape(1)).item()


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def set_times(peer: Any, schedule: Schedule, times: Tensor, sigmas: Tensor | None = None) -> Any:
    """Give the peer our times, and our table in double precision."""
    peer.set_timesteps(len(times) - 1)
    peer.timesteps = times[:-1] - 1 if hasattr(peer, "sigmas") else (times[:-1] - 1).long()
    if hasattr(peer, "sigmas"):
        peer.sigmas = ratio(schedule, times) if sigmas is None else sigmas
        peer.set_begin_index(0)
    if hasattr(peer, "alphas_cumprod"):
        peer.alphas_cumprod = schedule.alpha(torch.arange(1.0, 1001.0).double()).flatten() ** 2
        peer.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return peer


def generator(step: int) -> torch.Generator:
    """Return the generator of `seeded_noise`."""
    return torch.Generator().manual_seed(1000 + step)


def compare(
    peer: Any,
    steps: Iterator[Tensor],
    times: Tensor,
    schedule: Schedule,
    scaled: bool = False,
    last: int | None = None,
    **options: Callable[[int], Any],
) -> None:
    """Compare all steps, or those before `last`.

    Args:
        scaled: the peer works on z/alpha.
        options: arguments of the peer's step, as functions of the step.
    """
    z_t = start()
    pairs = list(zip(times[:-1], times[1:], steps, strict=True))
    for i, (t, s, z_s) in enumerate(pairs[:last]):
        sample = z_t / alpha(schedule, t) if scaled else z_t
        time = (t - 1).long() if not hasattr(peer, "sigmas") else t - 1
        peer.scale_model_input(sample, time)
        arguments = {name: option(i) for name, option in options.items()}
        theirs = peer.step(network(z_t), time, sample, **arguments).prev_sample
        close(z_s, theirs * alpha(schedule, s) if scaled else theirs, msg=f"step {i}")
        z_t = z_s


@pytest.mark.parametrize("kind", VP)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim(kind: str, eta: float) -> None:
    schedule = ScaledLinear()
    peer = diffusers.DDIMScheduler(**TABLE, clip_sample=False, steps_offset=0, prediction_type=kind)
    steps = ddim(denoiser(VP[kind], schedule), start(), TIMES, schedule, seeded_noise(SHAPE), eta)
    noise = seeded_noise(SHAPE)
    options = {"eta": lambda i: eta, "variance_noise": (lambda i: noise(i)) if eta else (lambda i: None)}
    compare(set_times(peer, schedule, TIMES), steps, TIMES, schedule, **options)


@pytest.mark.parametrize("kind", VP)
def test_ddpm(kind: str) -> None:
    schedule = ScaledLinear()
    peer = diffusers.DDPMScheduler(**TABLE, clip_sample=False, steps_offset=0, prediction_type=kind)
    steps = ddpm(denoiser(VP[kind], schedule), start(), TIMES, schedule, seeded_noise(SHAPE))
    compare(set_times(peer, schedule, TIMES), steps, TIMES, schedule, generator=generator)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler(kind: str) -> None:
    schedule = ScaledLinear()
    peer = diffusers.EulerDiscreteScheduler(**TABLE, steps_offset=0, prediction_type=kind)
    steps = euler(denoiser(VP[kind], schedule), start(), TIMES, schedule, no_noise)
    compare(set_times(peer, schedule, TIMES), steps, TIMES, schedule, scaled=True)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler_ancestral(kind: str) -> None:
    schedule = ScaledLinear()
    peer = diffusers.EulerAncestralDiscreteScheduler(**TABLE, steps_offset=0, prediction_type=kind)
    steps = euler_ancestral(denoiser(VP[kind], schedule), start(), TIMES, schedule, seeded_noise(SHAPE))
    compare(set_times(peer, schedule, TIMES), steps, TIMES, schedule, scaled=True, generator=generator)


FLOW_TIMES = torch.tensor([1000.0, 900, 750, 600, 500, 300, 120, 40, 0]).double()


def test_flow_euler_is_euler() -> None:
    """z_s = z_t + (s - t) v, starting from pure noise."""
    schedule = RectifiedFlow(1000)
    peer = diffusers.FlowMatchEulerDiscreteScheduler()
    steps = euler(denoiser(Flow(), schedule), start(), FLOW_TIMES, schedule, no_noise)
    peer = set_times(peer, schedule, FLOW_TIMES, FLOW_TIMES / 1000)
    peer.scale_model_input = lambda z, t: z
    compare(peer, steps, FLOW_TIMES, schedule)


MULTISTEP: dict[str, tuple[Sampler, str, dict[str, Any]]] = {
    "2m": (dpmpp_2m, "DPMSolverMultistepScheduler", {}),
    "unipc-1": (partial(unipc, order=1, b=bh2), "UniPCMultistepScheduler", {"solver_order": 1}),
    "unipc-2 bh1": (partial(unipc, order=2, b=bh1), "UniPCMultistepScheduler", {"solver_type": "bh1"}),
    "unipc-2 bh2": (partial(unipc, order=2, b=bh2), "UniPCMultistepScheduler", {}),
    "unipc-3 bh1": (
        partial(unipc, order=3, b=bh1), "UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh1"},
    ),
    "unipc-3 bh2": (partial(unipc, order=3, b=bh2), "UniPCMultistepScheduler", {"solver_order": 3}),
}  # fmt: skip


LAST = {"unipc-2 bh1": -1, "unipc-3 bh1": -2, "unipc-3 bh2": -2}
"""The end of the comparison, where the last steps of diffusers differ."""


@pytest.mark.parametrize("kind", [*VP, "flow_prediction"])
@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep(name: str, kind: str) -> None:
    """Deliberately different: diffusers lowers the order of the second to last step of UniPC-3 to 2.

    Its bh1 has no step into 0, where B is infinite; flow starts below T, as diffusers cannot step from T.
    """
    sampler, peer_name, options = MULTISTEP[name]
    flow = kind == "flow_prediction"
    schedule, times = (RectifiedFlow(1000), FLOW_TIMES[1:]) if flow else (ScaledLinear(), TIMES)
    peer = getattr(diffusers, peer_name)(**TABLE, **options, prediction_type=kind, use_flow_sigmas=flow)
    peer = set_times(peer, schedule, times, times / 1000 if flow else None)
    parameterization = Flow() if flow else VP[kind]
    steps = sampler(denoiser(parameterization, schedule), start(), times, schedule, no_noise)
    compare(peer, steps, times, schedule, last=LAST.get(name))


@pytest.mark.parametrize("kind", VP)
def test_2m_sde(kind: str) -> None:
    schedule = ScaledLinear()
    peer = diffusers.DPMSolverMultistepScheduler(
        **TABLE, algorithm_type="sde-dpmsolver++", prediction_type=kind
    )
    steps = dpmpp_2m_sde(denoiser(VP[kind], schedule), start(), TIMES, schedule, seeded_noise(SHAPE))
    compare(set_times(peer, schedule, TIMES), steps, TIMES, schedule, variance_noise=seeded_noise(SHAPE))


@pytest.mark.parametrize("kind", VP)
def test_3m_but_for_its_second_derivative(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliberately different: D2 of diffusers is h² z_0''/2 in the place of h² z_0'' (see test_order.py)."""
    schedule = ScaledLinear()
    monkeypatch.setattr(dpmpp_3m, "_derivatives", halve_second(dpmpp_3m._derivatives))
    # "heun" uses the Taylor series in the second step as well, unlike "midpoint".
    peer = diffusers.DPMSolverMultistepScheduler(
        **TABLE, solver_order=3, solver_type="heun", prediction_type=kind
    )
    steps = dpmpp_3m.dpmpp_3m(denoiser(VP[kind], schedule), start(), TIMES, schedule, no_noise)
    compare(set_times(peer, schedule, TIMES), steps, TIMES, schedule)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_heun(kind: str) -> None:
    """Diffusers counts each of the two evaluations as a step; `edm` without churn is the same."""
    schedule = ScaledLinear()
    peer = diffusers.HeunDiscreteScheduler(**TABLE, prediction_type=kind)
    sigmas = ratio(schedule, TIMES)
    doubled = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    peer = set_times(peer, schedule, TIMES, doubled)
    z_t, denoise = start(), denoiser(VP[kind], schedule)
    without_churn = edm(denoise, start(), TIMES, schedule, no_noise, churn=0.0)
    steps = heun(denoise, start(), TIMES, schedule, no_noise)
    for t, s, z_s, same in zip(TIMES[:-1], TIMES[1:], steps, without_churn, strict=True):
        x = z_t / alpha(schedule, t)
        theirs = peer.step(network(z_t), t, x).prev_sample
        if s > 0:
            theirs = peer.step(network(theirs * alpha(schedule, s)), s, theirs).prev_sample
        close(z_s, theirs * alpha(schedule, s))
        close(same, z_s)
        z_t = z_s


def test_plms() -> None:
    """Deliberately different: the step into 0 is first order here, and Adams-Bashforth in diffusers.

    With v prediction diffusers sums v of different times, where the method sums eps.
    """
    schedule = ScaledLinear()
    peer = diffusers.PNDMScheduler(**TABLE, skip_prk_steps=True, set_alpha_to_one=True)
    peer = set_times(peer, schedule, TIMES)
    z_t = start()
    steps = list(plms(denoiser(Eps(), schedule), z_t, TIMES, schedule, no_noise))
    for i, (t, s, z_s) in enumerate(zip(TIMES[:-2], TIMES[1:-1], steps[:-1], strict=True)):
        theirs = peer.step(network(z_t), (t - 1).long(), z_t).prev_sample
        if i == 0:
            theirs = peer.step(network(theirs), (s - 1).long(), theirs).prev_sample
        close(z_s, theirs)
        z_t = z_s


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("sampler", "algorithm", "final"),
    [(dpmpp_2s, "dpmsolver++", "zero"), (dpm_solver_2, "dpmsolver", "sigma_min")],
    ids=["2s", "dpm_solver_2"],
)
def test_singlestep(sampler: Sampler, algorithm: str, final: str, kind: str) -> None:
    """Diffusers steps to the midpoint and then from the start of the step: its times include our midpoints.

    Deliberately different: the step of DPM-Solver-2 into 0, which diffusers does not have.
    """
    schedule, coarse = ScaledLinear(), TIMES[::4]
    lam = schedule.lam(coarse).flatten()
    midpoints = schedule.time((lam[:-2] + lam[1:-1]) / 2)
    times = torch.cat([torch.stack([coarse[:-2], midpoints], 1).flatten(), coarse[-2:]])
    peer = diffusers.DPMSolverSinglestepScheduler(
        **TABLE, solver_order=2, algorithm_type=algorithm, final_sigmas_type=final, prediction_type=kind,
        lower_order_final=True,
    )  # fmt: skip
    peer = set_times(peer, schedule, times)
    theirs, z_t = [], start()
    for t in times[:-1]:
        z_t = peer.step(network(z_t), t, z_t).prev_sample
        theirs.append(z_t)
    steps = sampler(denoiser(VP[kind], schedule), start(), coarse, schedule, no_noise)
    expected = [*theirs[1:-1:2], theirs[-1]][: None if final == "zero" else -1]
    for z_s, other in zip(steps, expected, strict=final == "zero"):
        close(z_s, other)


SIGMAS = torch.tensor([60.0, 22, 9, 3, 1, 0.3, 0.05, 0], dtype=torch.float64)


class VarianceExploding(Schedule):
    """alpha = 1, as in EDM's equations; t = T sigma/80."""

    has_zero_terminal_snr = False

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)[:, None, None, None]

    def sigma(self, t: Tensor) -> Tensor:
        return 80 * (t / self.num_steps)[:, None, None, None]

    def time(self, lam: Tensor) -> Tensor:
        return self.num_steps * (-lam).exp() / 80

    def network_time(self, t: Tensor) -> Tensor:
        return t


def edm_denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return D(x, sigma) with EDM's preconditioning, sigma_data 1/2 (Karras et al. 2022, table 1)."""
    sigma = 80 * t.item() / 1000
    skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
    z_0 = skip * x + out * network(x)
    return z_0, (x - z_0) / sigma


def test_edm_euler() -> None:
    schedule, times = VarianceExploding(1000), SIGMAS * 1000 / 80
    peer = diffusers.EDMEulerScheduler()
    peer = set_times(peer, schedule, times)
    x = SIGMAS[0] * start()
    for t, x_s in zip(times[:-1], euler(edm_denoise, x, times, schedule, no_noise), strict=True):
        peer.scale_model_input(x, t)
        close(x_s, peer.step(network(x), t, x).prev_sample, rtol=1e-6, atol=1e-5)
        x = x_s


def test_edm_churn() -> None:
    """Algorithm 2 of Karras et al. (2022) line by line; diffusers has churn for Euler steps only."""
    schedule, times = VarianceExploding(1000), SIGMAS * 1000 / 80
    churn, low, high, inflation = 3.5, 0.1, 50.0, 1.003
    steps = edm(
        edm_denoise, SIGMAS[0] * start(), times, schedule, seeded_noise(SHAPE), churn, low, high, inflation
    )
    x, noise = SIGMAS[0] * start(), seeded_noise(SHAPE)

    def d(x: Tensor, sigma: float) -> Tensor:
        return (x - edm_denoise(x, torch.tensor(sigma * 1000 / 80, dtype=torch.float64))[0]) / sigma

    for i, x_s in enumerate(steps):
        t, following = SIGMAS[i].item(), SIGMAS[i + 1].item()
        gamma = min(churn / 7, math.sqrt(2) - 1) if low <= t <= high else 0.0
        hat = t + gamma * t
        if gamma > 0:
            x = x + math.sqrt(hat**2 - t**2) * inflation * noise(i)
        slope = d(x, hat)
        x_next = x + (following - hat) * slope
        if following > 0:
            x_next = x + (following - hat) * (slope + d(x_next, following)) / 2
        close(x_s, x_next)
        x = x_next
    peer = set_times(diffusers.EDMEulerScheduler(), schedule, times[-2:])
    (ours,) = edm(edm_denoise, start(), times[-2:], schedule, seeded_noise(SHAPE), 0.3, 0.0, high, inflation)
    peer.scale_model_input(start(), times[-2])
    sigma_hat = SIGMAS[-2] * 1.3
    noisier = start() + (sigma_hat**2 - SIGMAS[-2] ** 2).sqrt() * inflation * seeded_noise(SHAPE)(0)
    theirs = peer.step(
        network(noisier),
        times[-2],
        start(),
        s_churn=0.3,
        s_tmax=high,
        s_noise=inflation,
        generator=generator(0),
    )
    close(ours, theirs.prev_sample)
