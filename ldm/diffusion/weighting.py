"""Weights of the loss by noise level, for the squared error in y."""

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.parameterization import Parameterization


class Uniform:
    """w = 1: the simple loss (Ho et al. 2020, eq. 14)."""

    def __call__(
        self, alpha_t: Float[Tensor, "b 1 1 1"], sigma_t: Float[Tensor, "b 1 1 1"]
    ) -> Float[Tensor, " b"]:
        """One weight a sample."""
        return alpha_t.new_ones(len(alpha_t))


class MinSNR:
    """w = min(SNR, gamma) on the error in z_0 (Hang et al. 2023, section 3.4), SNR = (alpha/sigma)².

    An error in y is sigma/det times as large in z_0, so for every y, w = min(SNR, gamma) (sigma/det)².
    """

    def __init__(self, parameterization: Parameterization, gamma: float = 5.0) -> None:
        if gamma <= 0:
            raise ValueError(f"min-SNR needs gamma > 0, not {gamma}")
        self.parameterization = parameterization
        self.gamma = gamma

    def __call__(
        self, alpha_t: Float[Tensor, "b 1 1 1"], sigma_t: Float[Tensor, "b 1 1 1"]
    ) -> Float[Tensor, " b"]:
        """One weight a sample."""
        snr = (alpha_t / sigma_t).square()
        det = self.parameterization.det(alpha_t, sigma_t)
        return (snr.clamp(max=self.gamma) * (sigma_t / det).square()).flatten()
