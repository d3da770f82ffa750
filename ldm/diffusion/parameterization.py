"""What the network predicts: y = a z_0 + b eps.

With z_t = alpha z_0 + sigma eps, every prediction type is one 2x2 system: for det = b alpha - a sigma,

    z_0 = (b z_t - sigma y) / det,      eps = (alpha y - a z_t) / det.

Three facts follow. At zero terminal SNR det = 0 for eps prediction, which would have to find z_0 in pure
noise: that pair raises a ValueError. Guidance is linear in y with weights that sum to 1, so it commutes with
the solve. An error in y is an error sigma/det times as large in z_0, which is all that a weighting needs.
"""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue
from ldm.typing import PositiveFloat

Coefficient = Float[Tensor, "b 1 1 1"]


class Parameterization(ABC):
    """A prediction type, defined by (a, b)."""

    @abstractmethod
    def coefficients(self, alpha_t: Coefficient, sigma_t: Coefficient) -> tuple[Coefficient, Coefficient]:
        """(a, b) of y = a z_0 + b eps."""

    def det(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Coefficient:
        """b alpha - a sigma."""
        a, b = self.coefficients(alpha_t, sigma_t)
        return b * alpha_t - a * sigma_t

    def target(
        self,
        z_0: Float[Tensor, "b z h w"],
        eps: Float[Tensor, "b z h w"],
        alpha_t: Coefficient,
        sigma_t: Coefficient,
    ) -> Float[Tensor, "b z h w"]:
        """y = a z_0 + b eps."""
        a, b = self.coefficients(alpha_t, sigma_t)
        return a * z_0 + b * eps

    def solve(
        self,
        y: Float[Tensor, "b z h w"],
        z_t: Float[Tensor, "b z h w"],
        alpha_t: Coefficient,
        sigma_t: Coefficient,
    ) -> tuple[Float[Tensor, "b z h w"], Float[Tensor, "b z h w"]]:
        """Return (z_0, eps) for the prediction y at z_t."""
        (a, b), det = self.coefficients(alpha_t, sigma_t), self.det(alpha_t, sigma_t)
        return (b * z_t - sigma_t * y) / det, (alpha_t * y - a * z_t) / det

    def input_scale(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Coefficient:
        """Return the factor of z_t in the network's input."""
        return alpha_t.new_ones(()).expand_as(alpha_t)

    def check(self, schedule: Schedule) -> None:
        """Raise ValueError if det = 0 at some t in 1..T."""
        return None


class Eps(Parameterization):
    """y = eps (Ho et al. 2020, eq. 14)."""

    def coefficients(self, alpha_t: Coefficient, sigma_t: Coefficient) -> tuple[Coefficient, Coefficient]:
        return alpha_t * 0, alpha_t * 0 + 1

    def check(self, schedule: Schedule) -> None:
        if schedule.has_zero_terminal_snr:
            raise InvalidValue(
                f"alpha_T = 0 at T = {schedule.num_steps}, and eps prediction cannot find z_0 in pure noise: "
                "use parameterization=v or x0 with this schedule"
            )


class X0(Parameterization):
    """y = z_0 (Salimans & Ho 2022, section 4)."""

    def coefficients(self, alpha_t: Coefficient, sigma_t: Coefficient) -> tuple[Coefficient, Coefficient]:
        return alpha_t * 0 + 1, alpha_t * 0


class V(Parameterization):
    """v = alpha eps - sigma z_0 (Salimans & Ho 2022, section 4)."""

    def coefficients(self, alpha_t: Coefficient, sigma_t: Coefficient) -> tuple[Coefficient, Coefficient]:
        return -sigma_t, alpha_t


class Flow(Parameterization):
    """y = eps - z_0, the velocity of straight lines (Liu et al. 2023, eq. 1; Esser et al. 2024, eq. 2)."""

    def coefficients(self, alpha_t: Coefficient, sigma_t: Coefficient) -> tuple[Coefficient, Coefficient]:
        return alpha_t * 0 - 1, alpha_t * 0 + 1


class EDM(Parameterization):
    """z_0 = c_skip x + c_out y, x = z_0 + (sigma/alpha) eps, for a network with the input c_in x

    (Karras et al. 2022, eq. 7). Here x = z_t / alpha. With the data's `std` (theirs: sigma_data) and
    n = sqrt(sigma² + alpha² std²), their table 1 reads c_skip x = alpha std²/n² z_t, c_out = sigma std/n and
    c_in x = z_t/n; so

        y = sigma/(std n) z_0 - alpha std/n eps,      det = -n/std,

    which is never 0, so any schedule works, also with zero terminal SNR. With std 1, y = -v.
    """

    def __init__(self, std: PositiveFloat = 0.5) -> None:
        if std <= 0:
            raise InvalidValue(f"EDM needs a data std > 0, not {std}")
        self.std = std

    def coefficients(self, alpha_t: Coefficient, sigma_t: Coefficient) -> tuple[Coefficient, Coefficient]:
        scale = self.input_scale(alpha_t, sigma_t)
        return sigma_t / self.std * scale, -alpha_t * self.std * scale

    def input_scale(self, alpha_t: Coefficient, sigma_t: Coefficient) -> Coefficient:
        """c_in / alpha."""
        return (sigma_t**2 + (alpha_t * self.std) ** 2).rsqrt()
