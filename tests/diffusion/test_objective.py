import pytest
import torch

from ldm.diffusion.objective import diffusion_loss
from ldm.diffusion.parameterization import Eps, Parameterization
from ldm.diffusion.schedule import ScaledLinear
from ldm.diffusion.times import UniformTimes
from ldm.diffusion.weighting import Uniform
from ldm.typing import Conditioning


def loss(network, parameterization: Parameterization) -> torch.Tensor:  # noqa: ANN001
    g = torch.Generator().manual_seed(0)
    z_0, eps = torch.randn(2, 3, 4, 2, 2, generator=g)
    u = torch.tensor([0.0, 0.5, 0.999])
    at = ScaledLinear(), parameterization, Uniform(), UniformTimes(1000)
    return diffusion_loss(network, z_0, Conditioning(), eps, u, *at)


def test_a_network_that_predicts_the_noise_has_no_loss() -> None:
    g = torch.Generator().manual_seed(0)
    eps = torch.randn(2, 3, 4, 2, 2, generator=g)[1]
    assert loss(lambda z, t, c: eps, Eps()).tolist() == [0, 0, 0]
    assert loss(lambda z, t, c: eps + 2, Eps()).tolist() == pytest.approx([4, 4, 4], rel=1e-5)


def test_the_network_receives_noisy_latents_and_network_times(parameterization: Parameterization) -> None:
    received = {}

    def network(z, t, c):  # noqa: ANN001, ANN202
        received.update(z=z, t=t)
        return torch.zeros_like(z)

    loss(network, parameterization)
    assert received["t"].tolist() == [0, 500, 999]
    g = torch.Generator().manual_seed(0)
    z_0, eps = torch.randn(2, 3, 4, 2, 2, generator=g)
    schedule, t = ScaledLinear(), torch.tensor([1.0, 501.0, 1000.0])
    scale = parameterization.input_scale(schedule.alpha(t), schedule.sigma(t))
    torch.testing.assert_close(received["z"], scale * (schedule.alpha(t) * z_0 + schedule.sigma(t) * eps))
