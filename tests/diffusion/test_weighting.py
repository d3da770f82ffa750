import pytest
import torch

from ldm.diffusion.parameterization import Parameterization
from ldm.diffusion.schedule import Cosine
from ldm.diffusion.weighting import MinSNR, Uniform


def test_min_snr_weighs_the_same_error_in_z_0_alike(parameterization: Parameterization) -> None:
    schedule, t = Cosine(), torch.arange(1, 1000.0)
    alpha_t, sigma_t = schedule.alpha(t).double(), schedule.sigma(t).double()
    weight = MinSNR(parameterization, gamma=5.0)(alpha_t, sigma_t)
    # An error of 1 in y, as an error in z_0:
    z_0_error = (sigma_t / parameterization.det(alpha_t, sigma_t)).flatten()
    snr = (alpha_t / sigma_t).square().flatten()
    torch.testing.assert_close(weight / z_0_error.square(), snr.clamp(max=5), rtol=1e-9, atol=0)


def test_uniform_is_one() -> None:
    one = torch.ones(3, 1, 1, 1)
    assert Uniform()(one, one).tolist() == [1, 1, 1]


def test_gamma_is_positive(parameterization: Parameterization) -> None:
    with pytest.raises(ValueError, match="not 0"):
        MinSNR(parameterization, gamma=0)
