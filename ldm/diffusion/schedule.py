"""Noise schedules: z_t = alpha(t) z_0 + sigma(t) eps, t = 0 (clean) .. T (noise)."""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn


class Schedule(nn.Module):
    """alpha and sigma at t = 0..T as tables; t = 0 is exactly (1, 0).

    `alpha_bars` are the T products ᾱ_1..ᾱ_T of DDPM (Ho et al. 2020, section 2), strictly falling, in [0, 1).
    """

    alphas: Tensor
    sigmas: Tensor

    def __init__(self, alpha_bars: Float64[Tensor, " T"]) -> None:
        super().__init__()
        alpha_bars = torch.cat([alpha_bars.new_ones(1), alpha_bars])
        self.num_steps = len(alpha_bars) - 1
        # Not persistent: the configuration names the schedule, and a checkpoint must not contradict it.
        self.register_buffer("alphas", alpha_bars.sqrt().float(), persistent=False)
        self.register_buffer("sigmas", (1 - alpha_bars).sqrt().float(), persistent=False)

    def alpha(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """The signal's coefficient at whole times t in 0..T."""
        return self.alphas[t.long()][:, None, None, None]

    def sigma(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """The noise's coefficient at whole times t in 0..T."""
        return self.sigmas[t.long()][:, None, None, None]

    def lam(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """lam_t = log(alpha_t / sigma_t), half the log-SNR; infinite at t = 0."""
        return self.alpha(t).log() - self.sigma(t).log()

    def network_time(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """What the network is told about t: t - 1, since published networks count their steps from 0."""
        return t - 1

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether z_T is pure noise, alpha_T = 0."""
        return bool(self.alphas[-1] == 0)


def _check(num_steps: int, beta_start: float, beta_end: float) -> None:
    if num_steps < 1 or not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            "a schedule needs num_steps >= 1 and 0 < beta_start <= beta_end < 1, "
            f"not {num_steps}, {beta_start}, {beta_end}"
        )


class Linear(Schedule):
    """beta_t from beta_start to beta_end in equal steps (Ho et al. 2020, section 4)."""

    def __init__(self, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        _check(num_steps, beta_start, beta_end)
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64, device="cpu")
        super().__init__((1 - betas).cumprod(0))


class ScaledLinear(Schedule):
    """sqrt(beta_t) in equal steps: latent diffusion's schedule ("linear" in its published configs).

    Stable Diffusion: .00085 to .012 (sigma/alpha ends at 14.615); LDM-4: .0015 to .0195 (83.8).
    """

    def __init__(self, num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> None:
        _check(num_steps, beta_start, beta_end)
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float64, device="cpu")
        super().__init__((1 - roots.square()).cumprod(0))


class Cosine(Schedule):
    """ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) · π/2), beta_t <= max_beta (Nichol & Dhariwal 2021)."""

    def __init__(self, num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> None:
        if num_steps < 1 or offset < 0 or not 0 < max_beta < 1:
            raise ValueError(
                f"cosine needs T >= 1, s >= 0, 0 < max_beta < 1, not {num_steps}, {offset}, {max_beta}"
            )
        t = torch.arange(num_steps + 1, dtype=torch.float64, device="cpu") / num_steps
        f = torch.cos((t + offset) / (1 + offset) * math.pi / 2).square()
        betas = (1 - f[1:] / f[:-1]).clamp(max=max_beta)
        super().__init__((1 - betas).cumprod(0))
