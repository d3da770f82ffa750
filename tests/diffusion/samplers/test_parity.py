"""Step for step the same as `diffusers`, in double precision, from the peer's own grid and noise.

The peer gets our z_t before every step, so that one float32 step is what separates the two: some of its
schedulers round the sample to float32, and no more than that is left over.
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
from tests.support.exact_samplers import drawn, halve_second, no_noise

SHAPE = (2, 3, 4, 4)
VP = {"epsilon": Eps(), "v_prediction": V(), "sample": X0()}
TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TIMES = leading(1000, 20).double()

close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)


def network(z_t: Tensor) -> Tensor:
    """Whatever it predicts, both sides are given the same."""
    return 0.7 * torch.tanh(z_t)


def predicting(parameterization: Parameterization, schedule: Schedule) -> Denoise:
    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double().expand(len(z_t))
        return parameterization.solve(network(z_t), z_t, schedule.alpha(t), schedule.sigma(t))

    return denoise


def ratio(schedule: Schedule, times: Tensor) -> Tensor:
    """sigma/alpha, the peer's sigma."""
    return (schedule.sigma(times) / schedule.alpha(times)).flatten()


def alpha(schedule: Schedule, t: Tensor) -> float:
    return schedule.alpha(t.reshape(1)).item()


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def on_our_grid(peer: Any, schedule: Schedule, times: Tensor, sigmas: Tensor | None = None) -> Any:
    """The peer on `times`, from the same table in double precision."""
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
    """The one that `drawn` draws from."""
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
    """`scaled` peers hold z/alpha; each of `options` is asked for its step's value; the end is at `last`."""
    z_t = start()
    pairs = list(zip(times[:-1], times[1:], steps, strict=True))
    for i, (t, s, z_s) in enumerate(pairs[:last]):
        given = z_t / alpha(schedule, t) if scaled else z_t
        time = (t - 1).long() if not hasattr(peer, "sigmas") else t - 1
        peer.scale_model_input(given, time)
        chosen = {name: option(i) for name, option in options.items()}
        theirs = peer.step(network(z_t), time, given, **chosen).prev_sample
        close(z_s, theirs * alpha(schedule, s) if scaled else theirs, msg=f"step {i}")
        z_t = z_s


@pytest.mark.parametrize("kind", VP)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim(kind: str, eta: float) -> None:
    schedule = ScaledLinear()
    peer = diffusers.DDIMScheduler(**TABLE, clip_sample=False, steps_offset=0, prediction_type=kind)
    steps = ddim(predicting(VP[kind], schedule), start(), TIMES, schedule, seeded_noise(SHAPE), eta)
    noise = seeded_noise(SHAPE)
    options = {"eta": lambda i: eta, "variance_noise": (lambda i: noise(i)) if eta else (lambda i: None)}
    compare(on_our_grid(peer, schedule, TIMES), steps, TIMES, schedule, **options)


@pytest.mark.parametrize("kind", VP)
def test_ddpm(kind: str) -> None:
    schedule = ScaledLinear()
    peer = diffusers.DDPMScheduler(**TABLE, clip_sample=False, steps_offset=0, prediction_type=kind)
    steps = ddpm(predicting(VP[kind], schedule), start(), TIMES, schedule, seeded_noise(SHAPE))
    compare(on_our_grid(peer, schedule, TIMES), steps, TIMES, schedule, generator=generator)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler(kind: str) -> None:
    schedule = ScaledLinear()
    peer = diffusers.EulerDiscreteScheduler(**TABLE, steps_offset=0, prediction_type=kind)
    steps = euler(predicting(VP[kind], schedule), start(), TIMES, schedule, no_noise)
    compare(on_our_grid(peer, schedule, TIMES), steps, TIMES, schedule, scaled=True)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler_ancestral(kind: str) -> None:
    schedule = ScaledLinear()
    peer = diffusers.EulerAncestralDiscreteScheduler(**TABLE, steps_offset=0, prediction_type=kind)
    steps = euler_ancestral(predicting(VP[kind], schedule), start(), TIMES, schedule, seeded_noise(SHAPE))
    compare(on_our_grid(peer, schedule, TIMES), steps, TIMES, schedule, scaled=True, generator=generator)


FLOW_TIMES = torch.tensor([1000.0, 900, 750, 600, 500, 300, 120, 40, 0]).double()


def test_flow_euler_is_euler() -> None:
    """z_s = z_t + (s - t) v, from pure noise on."""
    schedule = RectifiedFlow(1000)
    peer = diffusers.FlowMatchEulerDiscreteScheduler()
    steps = euler(predicting(Flow(), schedule), start(), FLOW_TIMES, schedule, no_noise)
    peer = on_our_grid(peer, schedule, FLOW_TIMES, FLOW_TIMES / 1000)
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
"""Where the peer's last steps are others."""


@pytest.mark.parametrize("kind", [*VP, "flow_prediction"])
@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep(name: str, kind: str) -> None:
    """On purpose different: UniPC-3's last but one step, lowered to 2 in the peer along with the last.

    Its bh1 has no step into 0, where B is infinite. Flow starts below T: it has no step from pure noise.
    """
    sampler, peer_name, options = MULTISTEP[name]
    flow = kind == "flow_prediction"
    schedule, times = (RectifiedFlow(1000), FLOW_TIMES[1:]) if flow else (ScaledLinear(), TIMES)
    peer = getattr(diffusers, peer_name)(**TABLE, **options, prediction_type=kind, use_flow_sigmas=flow)
    peer = on_our_grid(peer, schedule, times, times / 1000 if flow else None)
    parameterization = Flow() if flow else VP[kind]
    steps = sampler(predicting(parameterization, schedule), start(), times, schedule, no_noise)
    compare(peer, steps, times, schedule, last=LAST.get(name))


@pytest.mark.parametrize("kind", VP)
def test_2m_sde(kind: str) -> None:
    schedule = ScaledLinear()
    peer = diffusers.DPMSolverMultistepScheduler(
        **TABLE, algorithm_type="sde-dpmsolver++", prediction_type=kind
    )
    steps = dpmpp_2m_sde(predicting(VP[kind], schedule), start(), TIMES, schedule, seeded_noise(SHAPE))
    compare(on_our_grid(peer, schedule, TIMES), steps, TIMES, schedule, variance_noise=seeded_noise(SHAPE))


@pytest.mark.parametrize("kind", VP)
def test_3m_but_for_its_second_derivative(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On purpose different: the peer's D2 is h² z_0''/2 in the place of h² z_0'' (see test_order.py)."""
    schedule = ScaledLinear()
    monkeypatch.setattr(dpmpp_3m, "_derivatives", halve_second(dpmpp_3m._derivatives))
    # Its second step is of the kind "heun", by the Taylor series as the third, and not "midpoint".
    peer = diffusers.DPMSolverMultistepScheduler(
        **TABLE, solver_order=3, solver_type="heun", prediction_type=kind
    )
    steps = dpmpp_3m.dpmpp_3m(predicting(VP[kind], schedule), start(), TIMES, schedule, no_noise)
    compare(on_our_grid(peer, schedule, TIMES), steps, TIMES, schedule)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_heun(kind: str) -> None:
    """The peer evaluates, and steps, twice a step; `edm` without churn is the same."""
    schedule = ScaledLinear()
    peer = diffusers.HeunDiscreteScheduler(**TABLE, prediction_type=kind)
    sigmas = ratio(schedule, TIMES)
    doubled = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    peer = on_our_grid(peer, schedule, TIMES, doubled)
    z_t, denoise = start(), predicting(VP[kind], schedule)
    still = edm(denoise, start(), TIMES, schedule, no_noise, churn=0.0)
    steps = heun(denoise, start(), TIMES, schedule, no_noise)
    for t, s, z_s, same in zip(TIMES[:-1], TIMES[1:], steps, still, strict=True):
        x = z_t / alpha(schedule, t)
        theirs = peer.step(network(z_t), t, x).prev_sample
        if s > 0:
            theirs = peer.step(network(theirs * alpha(schedule, s)), s, theirs).prev_sample
        close(z_s, theirs * alpha(schedule, s))
        close(same, z_s)
        z_t = z_s


def test_plms() -> None:
    """On purpose different: the step into 0, of first order here and Adams-Bashforth's there; and with v

    prediction the peer adds up v of different times, where the method adds up eps.
    """
    schedule = ScaledLinear()
    peer = diffusers.PNDMScheduler(**TABLE, skip_prk_steps=True, set_alpha_to_one=True)
    peer = on_our_grid(peer, schedule, TIMES)
    z_t = start()
    steps = list(plms(predicting(Eps(), schedule), z_t, TIMES, schedule, no_noise))
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
    """The peer steps to the middle and on from the step's start: its grid holds our middles.

    On purpose different: DPM-Solver-2's step into 0, which the peer does not have.
    """
    schedule, coarse = ScaledLinear(), TIMES[::4]
    lam = schedule.lam(coarse).flatten()
    middles = schedule.time((lam[:-2] + lam[1:-1]) / 2)
    times = torch.cat([torch.stack([coarse[:-2], middles], 1).flatten(), coarse[-2:]])
    peer = diffusers.DPMSolverSinglestepScheduler(
        **TABLE, solver_order=2, algorithm_type=algorithm, final_sigmas_type=final, prediction_type=kind,
        lower_order_final=True,
    )  # fmt: skip
    peer = on_our_grid(peer, schedule, times)
    theirs, z_t = [], start()
    for t in times[:-1]:
        z_t = peer.step(network(z_t), t, z_t).prev_sample
        theirs.append(z_t)
    steps = sampler(predicting(VP[kind], schedule), start(), coarse, schedule, no_noise)
    expected = [*theirs[1:-1:2], theirs[-1]][: None if final == "zero" else -1]
    for z_s, other in zip(steps, expected, strict=final == "zero"):
        close(z_s, other)


SIGMAS = torch.tensor([60.0, 22, 9, 3, 1, 0.3, 0.05, 0], dtype=torch.float64)


class VarianceExploding(Schedule):
    """alpha = 1: EDM's own axis, on which its step is written; t = T sigma/80."""

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
    """D(x, sigma) by EDM's preconditioning with sigma_data 1/2, written out (Karras et al. 2022, table 1)."""
    sigma = 80 * t.item() / 1000
    skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
    z_0 = skip * x + out * network(x)
    return z_0, (x - z_0) / sigma


def test_edm_euler() -> None:
    schedule, times = VarianceExploding(1000), SIGMAS * 1000 / 80
    peer = diffusers.EDMEulerScheduler()
    peer = on_our_grid(peer, schedule, times)
    x = SIGMAS[0] * start()
    for t, x_s in zip(times[:-1], euler(edm_denoise, x, times, schedule, no_noise), strict=True):
        peer.scale_model_input(x, t)
        close(x_s, peer.step(network(x), t, x).prev_sample, rtol=1e-6, atol=1e-5)
        x = x_s


def test_edm_s_churn() -> None:
    """Algorithm 2 of Karras et al. (2022), line by line; the peer has its churn with Euler's step alone."""
    schedule, times = VarianceExploding(1000), SIGMAS * 1000 / 80
    churn, low, high, inflation = 3.5, 0.1, 50.0, 1.003
    steps = edm(edm_denoise, SIGMAS[0] * start(), times, schedule, seeded_noise(SHAPE), churn, low, high, inflation)
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
        ahead = x + (following - hat) * slope
        if following > 0:
            ahead = x + (following - hat) * (slope + d(ahead, following)) / 2
        close(x_s, ahead)
        x = ahead
    peer = on_our_grid(diffusers.EDMEulerScheduler(), schedule, times[-2:])
    (ours,) = edm(edm_denoise, start(), times[-2:], schedule, seeded_noise(SHAPE), 0.3, 0.0, high, inflation)
    peer.scale_model_input(start(), times[-2])
    sigma_hat = SIGMAS[-2] * 1.3
    given = start() + (sigma_hat**2 - SIGMAS[-2] ** 2).sqrt() * inflation * seeded_noise(SHAPE)(0)
    theirs = peer.step(
        network(given),
        times[-2],
        start(),
        s_churn=0.3,
        s_tmax=high,
        s_noise=inflation,
        generator=generator(0),
    )
    close(ours, theirs.prev_sample)
