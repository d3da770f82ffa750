import pytest
import torch

from ldm.diffusion.guidance import guided
from ldm.diffusion.parameterization import Eps
from ldm.diffusion.schedule import ScaledLinear
from ldm.typing import Conditioning


class Counting:
    """Predicts the mean of the context and counts the samples it is asked for."""

    def __init__(self) -> None:
        self.samples = 0

    def __call__(self, z_t, t, cond):  # noqa: ANN001, ANN204
        self.samples += len(z_t)
        return cond.context.mean((1, 2))[:, None, None, None].expand_as(z_t)


def cond(value: float) -> Conditioning:
    return Conditioning(context=torch.full((2, 3, 4), value))


@pytest.mark.parametrize(("scale", "expected", "samples"), [(1.0, 2.0, 2), (3.0, 4.0, 4), (0.0, 1.0, 4)])
def test_extrapolates_from_the_null_and_skips_it_at_scale_one(
    scale: float, expected: float, samples: int
) -> None:
    network, z_t = Counting(), torch.zeros(2, 1, 2, 2)
    denoise = guided(network, ScaledLinear(), Eps(), cond(2.0), cond(1.0), scale)
    _, eps = denoise(z_t, torch.tensor(500.0))
    torch.testing.assert_close(eps, torch.full_like(eps, expected))
    assert network.samples == samples


def test_guidance_needs_a_null() -> None:
    with pytest.raises(ValueError, match="scale 2.0 needs the null"):
        guided(Counting(), ScaledLinear(), Eps(), cond(1.0), None, 2.0)
