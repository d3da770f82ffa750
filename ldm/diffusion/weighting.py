"""Weights of the loss by noise level, for the squared error in y.

An error in y is sigma/det times as large in z_0, so a weight that a paper puts on the error in z_0 is here
(sigma/det)² times that, for every prediction type. SNR = (alpha/sigma)².
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm.diffusion.parameterization import Coefficient, Parameterization
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue


class Weighting(ABC):
    """w(alpha_t, sigma_t), and the loss that it makes of a sample's error."""

    @abstractmethod
    def __call__(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Float[Tensor, " b"]:
        """One weight a sample."""

    def loss(
        self, error: Float[Tensor, " b"], alpha_t: Coefficient, sigma_t: Coefficient
    ) -> Float[Tensor, " b"]:
        """w error."""
        return self(alpha_t, sigma_t) * error

    @property
    def fixed(self) -> "Weighting":
        """The same without what is learned: what validation measures with."""
        return self

    def check(self, schedule: Schedule) -> None:
        """ValueError where some t in 1..T that must be learned has no weight."""
        return None


class Uniform(Weighting):
    """w = 1: the simple loss (Ho et al. 2020, eq. 14)."""

    def __call__(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Float[Tensor, " b"]:
        """One weight a sample."""
        return alpha_t.new_ones(len(alpha_t))


class OnZ0(Weighting):
    """A weight on the error in z_0."""

    def __init__(self, parameterization: Parameterization) -> None:
        self.parameterization = parameterization

    def __call__(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Float[Tensor, " b"]:
        """One weight a sample."""
        det = self.parameterization.det(alpha_t, sigma_t)
        return (self.on_z_0(alpha_t, sigma_t) * (sigma_t / det).square()).flatten()

    @abstractmethod
    def on_z_0(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Coefficient:
        """The weight of the squared error in z_0."""


class SNR(OnZ0):
    """w = SNR on the error in z_0: the simple loss of the noise (Salimans & Ho 2022, section 4)."""

    def on_z_0(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Coefficient:
        """SNR."""
        return (alpha_t / sigma_t).square()

    def check(self, schedule: Schedule) -> None:
        """ValueError at zero terminal SNR."""
        _refuse_zero_terminal_snr(schedule, "SNR", "use weighting=min_snr with weighting.least=0.005")


class MinSNR(OnZ0):
    """w = min(SNR, gamma) on the error in z_0 (Hang et al. 2023, "Min-SNR-γ").

    At zero terminal SNR that is a weight of 0 at t = T, exactly where sampling starts: T is never learned.
    With `least` > 0, w = min(max(SNR, least), gamma); 0.005 is where Stable Diffusion's SNR ends.
    """

    def __init__(self, parameterization: Parameterization, gamma: float = 5.0, least: float = 0.0) -> None:
        super().__init__(parameterization)
        if gamma <= 0 or not 0 <= least < gamma:
            raise InvalidValue(f"min-SNR needs gamma > 0 and 0 <= least < gamma, not {gamma} and {least}")
        self.gamma, self.least = gamma, least

    def on_z_0(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Coefficient:
        """min(max(SNR, least), gamma)."""
        return (alpha_t / sigma_t).square().clamp(self.least, self.gamma)

    def check(self, schedule: Schedule) -> None:
        """ValueError at zero terminal SNR without `least`."""
        if self.least == 0:
            _refuse_zero_terminal_snr(schedule, "min-SNR", "give weighting.least=0.005")


class SoftMinSNR(OnZ0):
    """w = SNR gamma/(SNR + gamma) on the error in z_0: min-SNR without a corner (Crowson et al. 2024)."""

    def __init__(self, parameterization: Parameterization, gamma: float = 4.0) -> None:
        super().__init__(parameterization)
        if gamma <= 0:
            raise InvalidValue(f"soft-min-SNR needs gamma > 0, not {gamma}")
        self.gamma = gamma

    def on_z_0(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Coefficient:
        """Half the harmonic mean of SNR and gamma."""
        return self.gamma * alpha_t**2 / (alpha_t**2 + self.gamma * sigma_t**2)

    def check(self, schedule: Schedule) -> None:
        """ValueError at zero terminal SNR."""
        _refuse_zero_terminal_snr(
            schedule, "soft-min-SNR", "use weighting=min_snr with weighting.least=0.005"
        )


class EDM(OnZ0):
    """w = (r² + std²)/(r std)² on the error in z_0, r = sigma/alpha (Karras et al. 2022, table 1).

    It is 1 for EDM's own y, and nowhere 0: zero terminal SNR is served, too. `std` is that of the data.
    """

    def __init__(self, parameterization: Parameterization, std: float = 0.5) -> None:
        super().__init__(parameterization)
        if std <= 0:
            raise InvalidValue(f"EDM's data have a std > 0, not {std}")
        self.std = std

    def on_z_0(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Coefficient:
        """1/std² + SNR."""
        return self.std**-2 + (alpha_t / sigma_t).square()


class LearnedUncertainty(nn.Module, Weighting):
    """L = w error / exp(u) + u, u(lam) learned along (Karras et al. 2024, "Analyzing and Improving", eq. 14).

    At its best exp(u) is the mean of w error at each noise level, so every level gives gradients of one size.
    u is linear in fixed random Fourier features of c_noise = -lam/4, |lam| <= 10, and starts at 0.

    Args:
        weighting: w.
        channels: the number of features.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, weighting: Weighting, channels: int = 128) -> None:
        super().__init__()
        if channels < 1:
            raise InvalidValue(f"a learned uncertainty needs channels >= 1, not {channels}")
        self.weighting = weighting
        generator = torch.Generator().manual_seed(0)
        draws = (torch.randn, torch.rand)
        for name, draw in zip(("frequencies", "phases"), draws, strict=True):
            values = 2 * math.pi * draw(channels, generator=generator, device="cpu")
            self.register_buffer(name, values, persistent=False)
        self.weight = nn.Parameter(torch.zeros(channels))

    def __call__(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Float[Tensor, " b"]:
        """w."""
        return self.weighting(alpha_t, sigma_t)

    def loss(
        self, error: Float[Tensor, " b"], alpha_t: Coefficient, sigma_t: Coefficient
    ) -> Float[Tensor, " b"]:
        """w error / exp(u) + u."""
        u = self.uncertainty(alpha_t, sigma_t)
        return self(alpha_t, sigma_t) * error / u.exp() + u

    def uncertainty(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Float[Tensor, " b"]:
        """u."""
        noise = (sigma_t.log() - alpha_t.log()).clamp(-10, 10).flatten()[:, None] / 4
        features = math.sqrt(2) * (noise * self.frequencies + self.phases).cos()  # b k
        return (features * self.weight).sum(1) / math.sqrt(len(self.weight))  # autocast would round a product

    @property
    def fixed(self) -> Weighting:
        """w alone."""
        return self.weighting

    def check(self, schedule: Schedule) -> None:
        """As w."""
        self.weighting.check(schedule)


def _refuse_zero_terminal_snr(schedule: Schedule, name: str, advice: str) -> None:
    if schedule.has_zero_terminal_snr:
        raise InvalidValue(
            f"alpha_T = 0 at T = {schedule.num_steps}: {name} gives T, where sampling starts, the weight 0; "
            f"{advice}"
        )
