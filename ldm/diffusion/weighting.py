"""Loss weights by noise level, for the squared error in y.

An error in y is an error sigma/det times as large in z_0. A weight that a paper defines for the squared error
in z_0 is therefore multiplied by (sigma/det)², for every prediction type. SNR = (alpha/sigma)².
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm.diffusion.parameterization import Coefficient, Parameterization
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue
from ldm.typing import Channels, NonNegativeFloat, PositiveFloat


class Weighting(ABC):
    """w(alpha_t, sigma_t), and the weighted loss of each sample."""

    @abstractmethod
    def __call__(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Float[Tensor, " b"]:
        """Return one weight per sample."""

    def loss(
        self, error: Float[Tensor, " b"], alpha_t: Coefficient, sigma_t: Coefficient
    ) -> Float[Tensor, " b"]:
        """w error."""
        return self(alpha_t, sigma_t) * error

    @property
    def fixed(self) -> "Weighting":
        """The weighting without learned parameters, for validation."""
        return self

    def check(self, schedule: Schedule) -> None:
        """Raise InvalidValue if the weight is 0 at T, where sampling starts."""
        return None


class Uniform(Weighting):
    """w = 1: the simple loss (Ho et al. 2020, eq. 14)."""

    def __call__(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Float[Tensor, " b"]:
        """Return one weight per sample."""
        return alpha_t.new_ones(len(alpha_t))


class Z0Weighting(Weighting):
    """A weighting defined by a weight of the squared error in z_0."""

    def __init__(self, parameterization: Parameterization) -> None:
        self.parameterization = parameterization

    def __call__(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Float[Tensor, " b"]:
        """Return one weight per sample."""
        det = self.parameterization.det(alpha_t, sigma_t)
        return (self.z_0_weight(alpha_t, sigma_t) * (sigma_t / det).square()).flatten()

    @abstractmethod
    def z_0_weight(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Coefficient:
        """Return the weight of the squared error in z_0."""


class SNR(Z0Weighting):
    """w = SNR on the error in z_0: the simple loss of eps prediction (Salimans & Ho 2022, section 4)."""

    def z_0_weight(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Coefficient:
        """SNR."""
        return (alpha_t / sigma_t).square()

    def check(self, schedule: Schedule) -> None:
        """Raise InvalidValue at zero terminal SNR."""
        _require_terminal_snr(schedule, "SNR", "use weighting=min_snr with weighting.least=0.005")


class MinSNR(Z0Weighting):
    """w = min(SNR, gamma) on the error in z_0 (Hang et al. 2023, "Min-SNR-γ").

    At zero terminal SNR the weight is 0 at T, where sampling starts, so the network would not learn this t.
    With `least` > 0, w = min(max(SNR, least), gamma); 0.005 is the smallest SNR of Stable Diffusion.
    """

    def __init__(
        self, parameterization: Parameterization, gamma: PositiveFloat = 5.0, least: NonNegativeFloat = 0.0
    ) -> None:
        super().__init__(parameterization)
        if gamma <= 0 or not 0 <= least < gamma:
            raise InvalidValue(f"min-SNR needs gamma > 0 and 0 <= least < gamma, not {gamma} and {least}")
        self.gamma, self.least = gamma, least

    def z_0_weight(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Coefficient:
        """min(max(SNR, least), gamma)."""
        return (alpha_t / sigma_t).square().clamp(self.least, self.gamma)

    def check(self, schedule: Schedule) -> None:
        """Raise InvalidValue at zero terminal SNR without `least`."""
        if self.least == 0:
            _require_terminal_snr(schedule, "min-SNR", "set weighting.least=0.005")


class SoftMinSNR(Z0Weighting):
    """w = SNR gamma/(SNR + gamma) on the error in z_0: smooth min-SNR (Crowson et al. 2024)."""

    def __init__(self, parameterization: Parameterization, gamma: PositiveFloat = 4.0) -> None:
        super().__init__(parameterization)
        if gamma <= 0:
            raise InvalidValue(f"soft-min-SNR needs gamma > 0, not {gamma}")
        self.gamma = gamma

    def z_0_weight(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Coefficient:
        """Half the harmonic mean of SNR and gamma."""
        return self.gamma * alpha_t**2 / (alpha_t**2 + self.gamma * sigma_t**2)

    def check(self, schedule: Schedule) -> None:
        """Raise InvalidValue at zero terminal SNR."""
        _require_terminal_snr(schedule, "soft-min-SNR", "use weighting=min_snr with weighting.least=0.005")


class EDM(Z0Weighting):
    """w = (r² + std²)/(r std)² on the error in z_0, r = sigma/alpha (Karras et al. 2022, table 1).

    On the error in EDM's own y, w = 1. It is never 0, so zero terminal SNR works, too. `std` is that of the
    latents.
    """

    def __init__(self, parameterization: Parameterization, std: PositiveFloat = 0.5) -> None:
        super().__init__(parameterization)
        if std <= 0:
            raise InvalidValue(f"EDM needs a data std > 0, not {std}")
        self.std = std

    def z_0_weight(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Coefficient:
        """1/std² + SNR."""
        return self.std**-2 + (alpha_t / sigma_t).square()


class LearnedUncertainty(nn.Module, Weighting):
    """L = w error / exp(u) + u, u(lam) learned (Karras et al. 2024, "Analyzing and Improving", eq. 14).

    At the optimum exp(u) is the mean of w error at each noise level, which equalises their gradients.
    u is linear in fixed random Fourier features of c_noise = -lam/4, |lam| <= 10, and starts at 0.

    Args:
        weighting: w.
        channels: number of Fourier features.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, weighting: Weighting, channels: Channels = 128) -> None:
        super().__init__()
        if channels < 1:
            raise InvalidValue(f"LearnedUncertainty needs channels >= 1, not {channels}")
        self.weighting = weighting
        generator = torch.Generator().manual_seed(0)
        for name, sample in (("frequencies", torch.randn), ("phases", torch.rand)):
            values = 2 * math.pi * sample(channels, generator=generator, device="cpu")
            self.register_buffer(name, values, persistent=False)
        self.weight = nn.Parameter(torch.zeros(channels))

    def __call__(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Float[Tensor, " b"]:
        """Return w."""
        return self.weighting(alpha_t, sigma_t)

    def loss(
        self, error: Float[Tensor, " b"], alpha_t: Coefficient, sigma_t: Coefficient
    ) -> Float[Tensor, " b"]:
        """w error / exp(u) + u."""
        u = self.uncertainty(alpha_t, sigma_t)
        return self(alpha_t, sigma_t) * error / u.exp() + u

    def uncertainty(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Float[Tensor, " b"]:
        """Return u of each sample."""
        c_noise = (sigma_t.log() - alpha_t.log()).clamp(-10, 10).flatten()[:, None] / 4
        features = math.sqrt(2) * (c_noise * self.frequencies + self.phases).cos()  # b k
        # A sum instead of a matrix product, which autocast would round.
        return (features * self.weight).sum(1) / math.sqrt(len(self.weight))

    @property
    def fixed(self) -> Weighting:
        """The weighting w, without u."""
        return self.weighting

    def check(self, schedule: Schedule) -> None:
        """Raise InvalidValue if `weighting` does."""
        self.weighting.check(schedule)


def _require_terminal_snr(schedule: Schedule, name: str, advice: str) -> None:
    if schedule.has_zero_terminal_snr:
        raise InvalidValue(
            f"alpha_T = 0 at T = {schedule.num_steps}, so the {name} weight is 0 at T, where sampling "
            f"starts: {advice}"
        )
