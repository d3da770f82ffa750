"""Noise schedules: z_t = alpha(t) z_0 + sigma(t) eps, real t from 0 (clean) to T (noise)."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ldm.errors import InvalidValue
from ldm.typing import NonNegativeFloat, PositiveFloat, Proportion, Rho, Shift, Timesteps


class Schedule(nn.Module, ABC):
    """alpha and sigma at real t in [0, T], T = `num_steps`; t = 0 is exactly (1, 0), and lam falls strictly.

    The coefficients have the dtype of the times.
    """

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        if num_steps < 1:
            raise InvalidValue(f"the schedule needs num_steps >= 1, not {num_steps}")
        self.num_steps = num_steps

    @abstractmethod
    def alpha(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """Return the signal coefficient at t in [0, T]."""

    @abstractmethod
    def sigma(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """Return the noise coefficient at t in [0, T]."""

    def lam(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """lam_t = log(alpha_t / sigma_t), half the log-SNR; infinite at t = 0."""
        return self.alpha(t).log() - self.sigma(t).log()

    @abstractmethod
    def time(self, lam: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return the t in [0, T] of each lam, the inverse of `lam`; T for more noise than z_T has."""

    @abstractmethod
    def network_time(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return the time that the network receives."""

    @property
    @abstractmethod
    def has_zero_terminal_snr(self) -> bool:
        """Whether z_T is pure noise, alpha_T = 0."""


class TableSchedule(Schedule):
    """A table for t = 0..T, variance preserving: alpha² + sigma² = 1.

    Between whole t, lam is linear in t. Next to the clean t = 0, and to a T of pure noise, lam is infinite:
    there the coefficient that vanishes is linear instead.

    Args:
        alpha_bars: the T products ᾱ_1..ᾱ_T of DDPM (Ho et al. 2020, section 2), strictly falling, in [0, 1).
        zero_terminal_snr: rescale the table to end in pure noise, see `rescale_zero_terminal_snr`.
        shift: factor of sigma/alpha for another resolution, see `shift_snr`.
    """

    def __init__(
        self, alpha_bars: Float64[Tensor, " T"], zero_terminal_snr: bool = False, shift: float = 1.0
    ) -> None:
        super().__init__(len(alpha_bars))
        if not 0 <= alpha_bars[-1] or not alpha_bars[0] < 1 or (alpha_bars.diff() >= 0).any():
            raise InvalidValue(f"alpha_bars must fall strictly within [0, 1), not {alpha_bars.tolist()[:10]}")
        if shift != 1:
            alpha_bars = shift_snr(alpha_bars, shift)
        if zero_terminal_snr:
            alpha_bars = rescale_zero_terminal_snr(alpha_bars)
        alpha_bars = torch.cat([alpha_bars.new_ones(1), alpha_bars])
        # No buffers: the config defines the schedule, which a checkpoint must not change, nor `half()` round.
        self.alphas, self.sigmas = alpha_bars.sqrt(), (1 - alpha_bars).sqrt()
        self.lams = (alpha_bars.log() - (1 - alpha_bars).log()) / 2
        self._table_cache: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = {}

    def alpha(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """Return the signal coefficient, the table's exact value at whole t."""
        return self._coefficients(t)[0][:, None, None, None]

    def sigma(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """Return the noise coefficient, the table's exact value at whole t."""
        return self._coefficients(t)[1][:, None, None, None]

    def time(self, lam: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return t by inverse interpolation within the table's interval that contains lam."""
        alphas, sigmas, lams = self._tables(lam)
        cell = torch.searchsorted(-lams[1:], -lam).clamp(max=self.num_steps - 1)
        inner = (lams[cell] - lam) / (lams[cell] - lams[cell + 1])
        first = (-2 * lam).sigmoid().sqrt() / sigmas[1]
        last = 1 - (2 * lam).sigmoid().sqrt() / alphas[-2]
        return cell + self._select_by_cell(cell, first, inner, last).clamp(0, 1)

    def network_time(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """t - 1: published networks count from 0."""
        return t - 1

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether z_T is pure noise, alpha_T = 0."""
        return bool(self.alphas[-1] == 0)

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alphas, sigmas, lams = self._tables(t)
        cell, part = t.long(), t.frac()
        up = t.ceil().long()
        alpha, sigma, lam = (torch.lerp(table[cell], table[up], part) for table in (alphas, sigmas, lams))
        between = (
            self._select_by_cell(cell, (1 - sigma**2).sqrt(), (2 * lam).sigmoid().sqrt(), alpha),
            self._select_by_cell(cell, sigma, (-2 * lam).sigmoid().sqrt(), (1 - alpha**2).sqrt()),
        )
        exact = part == 0
        return torch.where(exact, alphas[cell], between[0]), torch.where(exact, sigmas[cell], between[1])

    def _select_by_cell(self, cell: Tensor, first: Tensor, inner: Tensor, last: Tensor) -> Tensor:
        """Return `first` in the interval [0, 1], `last` in one that ends in pure noise, `inner` elsewhere."""
        if self.has_zero_terminal_snr:
            inner = torch.where(cell == self.num_steps - 1, last, inner)
        return torch.where(cell == 0, first, inner)

    def _tables(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tables of alpha, sigma and lam with the device and dtype of `like`."""
        key = (like.device, like.dtype)
        if key not in self._table_cache:
            with torch.inference_mode(False):  # the first call may be validation, training uses them, too
                alphas, sigmas, lams = (
                    table.to(like.dtype).to(like.device) for table in (self.alphas, self.sigmas, self.lams)
                )
            self._table_cache[key] = alphas, sigmas, lams
        return self._table_cache[key]


def rescale_zero_terminal_snr(alpha_bars: Float64[Tensor, " T"]) -> Float64[Tensor, " T"]:
    """sqrt ᾱ' = (sqrt ᾱ - sqrt ᾱ_T) sqrt ᾱ_1 / (sqrt ᾱ_1 - sqrt ᾱ_T), 0 at T (Lin et al. 2023, alg. 1)."""
    alphas = alpha_bars.sqrt()
    if len(alphas) < 2:
        raise InvalidValue(f"zero_terminal_snr needs num_steps >= 2, not {len(alphas)}")
    return ((alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1]))).square()


def shift_snr(alpha_bars: Float64[Tensor, " T"], shift: float) -> Float64[Tensor, " T"]:
    """sigma'/alpha' = shift sigma/alpha, so lam' = lam - log shift (Hoogeboom et al. 2023).

    Averaging a larger image over n x n pixels multiplies alpha/sigma by n: shift = n undoes that.
    """
    _check_shift(shift)
    return alpha_bars / (alpha_bars + shift**2 * (1 - alpha_bars))


def _check_shift(shift: float) -> None:
    if shift <= 0:
        raise InvalidValue(f"shift must be a factor > 0 of sigma/alpha, not {shift}")


def _check_betas(num_steps: int, beta_start: float, beta_end: float) -> None:
    if num_steps < 1 or not 0 < beta_start <= beta_end < 1:
        raise InvalidValue(
            "the schedule needs num_steps >= 1 and 0 < beta_start <= beta_end < 1, "
            f"not {num_steps}, {beta_start}, {beta_end}"
        )


class Linear(TableSchedule):
    """beta_t from beta_start to beta_end in equal steps (Ho et al. 2020, section 4)."""

    def __init__(
        self,
        num_steps: Timesteps = 1000,
        beta_start: Proportion = 1e-4,
        beta_end: Proportion = 0.02,
        zero_terminal_snr: bool = False,
        shift: Shift = 1.0,
    ) -> None:
        _check_betas(num_steps, beta_start, beta_end)
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64, device="cpu")
        super().__init__((1 - betas).cumprod(0), zero_terminal_snr, shift)


class ScaledLinear(TableSchedule):
    """sqrt(beta_t) in equal steps: the schedule of latent diffusion ("linear" in its published configs).

    Stable Diffusion: .00085 to .012 (sigma/alpha ends at 14.615); LDM-4: .0015 to .0195 (83.8).
    """

    def __init__(
        self,
        num_steps: Timesteps = 1000,
        beta_start: Proportion = 0.00085,
        beta_end: Proportion = 0.012,
        zero_terminal_snr: bool = False,
        shift: Shift = 1.0,
    ) -> None:
        _check_betas(num_steps, beta_start, beta_end)
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float64, device="cpu")
        super().__init__((1 - roots.square()).cumprod(0), zero_terminal_snr, shift)


class Cosine(TableSchedule):
    """ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) · π/2), beta_t <= max_beta (Nichol & Dhariwal 2021)."""

    def __init__(
        self,
        num_steps: Timesteps = 1000,
        offset: NonNegativeFloat = 0.008,
        max_beta: Proportion = 0.999,
        zero_terminal_snr: bool = False,
        shift: Shift = 1.0,
    ) -> None:
        if num_steps < 1 or offset < 0 or not 0 < max_beta < 1:
            raise InvalidValue(
                "the cosine schedule needs num_steps >= 1, offset >= 0 and 0 < max_beta < 1, "
                f"not {num_steps}, {offset}, {max_beta}"
            )
        t = torch.arange(num_steps + 1, dtype=torch.float64, device="cpu") / num_steps
        f = torch.cos((t + offset) / (1 + offset) * math.pi / 2).square()
        betas = (1 - f[1:] / f[:-1]).clamp(max=max_beta)
        super().__init__((1 - betas).cumprod(0), zero_terminal_snr, shift)


class RectifiedFlow(Schedule):
    """alpha = 1 - u, sigma = u, straight from data to noise; u = s r/(1 + (s - 1) r), r = t/T, `shift` s.

    Liu et al. 2023, eq. 1. The shift of sigma/alpha by s for other resolutions: Esser et al. 2024, eq. 23.
    """

    has_zero_terminal_snr = True

    def __init__(self, num_steps: Timesteps = 1000, shift: Shift = 1.0) -> None:
        super().__init__(num_steps)
        _check_shift(shift)
        self.shift = shift

    def alpha(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """1 - u = (T - t)/(T + (s - 1) t)."""
        return ((self.num_steps - t) / (self.num_steps + (self.shift - 1) * t))[:, None, None, None]

    def sigma(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """u = s t/(T + (s - 1) t)."""
        return (self.shift * t / (self.num_steps + (self.shift - 1) * t))[:, None, None, None]

    def time(self, lam: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """T sigmoid(-lam - log s)."""
        return self.num_steps * (-lam - math.log(self.shift)).sigmoid()

    def network_time(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """1000 sigma, as in published flow networks."""
        return 1000 * self.sigma(t).flatten()


class Karras(Schedule):
    """r = sigma/alpha, r^(1/rho) in equal steps from sigma_min (t = 1) to sigma_max (T).

    Karras et al. 2022, eq. 5. EDM's x = z_0 + r eps is divided by sqrt(1 + r²) to preserve variance: alpha =
    1/sqrt(1 + r²). Between t = 0 and 1, r is linear.
    """

    has_zero_terminal_snr = False

    def __init__(
        self,
        num_steps: Timesteps = 1000,
        sigma_min: PositiveFloat = 0.002,
        sigma_max: PositiveFloat = 80.0,
        rho: Rho = 7.0,
    ) -> None:
        super().__init__(num_steps)
        if num_steps < 2 or not 0 < sigma_min < sigma_max or rho <= 0:
            raise InvalidValue(
                "the Karras schedule needs num_steps >= 2, 0 < sigma_min < sigma_max and rho > 0, "
                f"not {num_steps}, {sigma_min}, {sigma_max}, {rho}"
            )
        self.sigma_min, self.rho = sigma_min, rho
        self.root_min, root_max = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        self.slope = (root_max - self.root_min) / (num_steps - 1)

    def alpha(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """1/sqrt(1 + r²)."""
        return (1 + self._ratio(t) ** 2).rsqrt()[:, None, None, None]

    def sigma(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """r/sqrt(1 + r²)."""
        return self._ratio(t)[:, None, None, None] * self.alpha(t)

    def time(self, lam: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """1 + (T - 1) (r^(1/rho) - min^(1/rho))/(max^(1/rho) - min^(1/rho)), r = e^-lam."""
        ratio = (-lam).exp()
        t = 1 + (ratio ** (1 / self.rho) - self.root_min) / self.slope
        return torch.where(ratio < self.sigma_min, ratio / self.sigma_min, t.clamp(max=self.num_steps))

    def network_time(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """ln(r)/4 (Karras et al. 2022, table 1: c_noise)."""
        return self._ratio(t).log() / 4

    def _ratio(self, t: Tensor) -> Tensor:
        inner = (self.root_min + self.slope * (t - 1).clamp(min=0)) ** self.rho
        return torch.where(t < 1, self.sigma_min * t, inner)
