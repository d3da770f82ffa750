"""An image depends on its own seed only; every sampler ends in the predicted z_0 on every schedule."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from ldm import rng
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.samplers.dpmpp_2m import dpmpp_2m
from ldm.diffusion.samplers.edm import edm
from ldm.diffusion.samplers.euler_ancestral import euler_ancestral
from ldm.diffusion.samplers.unipc import bh2, unipc
from ldm.diffusion.schedule import Cosine, RectifiedFlow, ScaledLinear, Schedule
from ldm.diffusion.times import trailing
from tests.support.exact_samplers import MEAN, ODE, SDE, STD, exact_denoiser, seeded_noise

ALL = ODE | SDE
SHAPE = (3, 5, 7)


def noise_of(seeds: list[int]) -> Callable[[int], Tensor]:
    return lambda step: rng.normal(0, seeds, f"sampler/{step}", SHAPE)


@pytest.mark.parametrize("name", ALL)
def test_batches_of_1_and_7_in_any_order_are_equal_bit_for_bit(name: str) -> None:
    schedule, times = ScaledLinear(), trailing(1000, 9)

    def sample(seeds: list[int]) -> Tensor:
        z_T = rng.normal(0, seeds, "z_T", SHAPE)
        *_, z_0 = ALL[name](exact_denoiser(schedule), z_T, times, schedule, noise_of(seeds))
        return z_0

    order = [6, 2, 5, 0, 3, 1, 4]
    batch = sample(order)
    assert batch.dtype == torch.float32
    for i, seed in enumerate(order):
        assert torch.equal(sample([seed])[0], batch[i])


@pytest.mark.parametrize(
    "schedule", [ScaledLinear(), Cosine(), RectifiedFlow(1000)], ids=["vp", "cosine", "flow"]
)
@pytest.mark.parametrize("name", ALL)
def test_ends_in_the_predicted_z_0(name: str, schedule: Schedule) -> None:
    """Also from pure noise, where sigma/alpha is infinite."""
    ideal, predicted = exact_denoiser(schedule), list[Tensor]()

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        assert 0 < t <= 1000, "t = 0 is never a point of evaluation"
        z_0, eps = ideal(z_t, t)
        predicted.append(z_0)
        return z_0, eps

    z_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = seeded_noise(z_T.shape, z_T.dtype)
    for steps in (1, 2, 3, 4, 5, 8):
        trajectory = list(ALL[name](denoise, z_T, trailing(1000, steps), schedule, noise))
        assert len(trajectory) == steps
        assert all(z.isfinite().all() and z.dtype == z_T.dtype for z in trajectory)
        assert torch.equal(trajectory[-1], predicted[-1])


@pytest.mark.parametrize("name", ALL)
def test_fifty_steps_give_the_data_distribution(name: str) -> None:
    """From pure noise, on a flow; the tolerance covers the mean and spread of z_T itself."""
    schedule, g = RectifiedFlow(1000), torch.Generator().manual_seed(0)
    z_T = torch.randn(20_000, 1, 1, 1, generator=g, dtype=torch.float64)
    *_, z_0 = ALL[name](exact_denoiser(schedule), z_T, trailing(1000, 50), schedule, seeded_noise(z_T.shape))
    assert z_0.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert z_0.std().item() == pytest.approx(STD, rel=0.08 if name in SDE else 0.03)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (partial(ddim, eta=1.5), r"0\.\.1, not 1\.5"),
        (partial(euler_ancestral, eta=-0.5), r"0\.\.1, not -0\.5"),
        (partial(dpmpp_2m, eta=2.0), r"0\.\.1, not 2\.0"),
        (partial(unipc, order=4, b=bh2), "1, 2 or 3, not 4"),
        (partial(edm, churn=-1.0), r"churn >= 0, .* not -1"),
        (partial(edm, churn_min=2.0, churn_max=1.0), r"churn_min <= churn_max .* 2\.0, 1\.0"),
    ],
)
def test_values_out_of_range_are_refused(sampler: Sampler, message: str) -> None:
    schedule, z_T = ScaledLinear(), torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match=message):
        next(
            iter(sampler(exact_denoiser(schedule), z_T, trailing(1000, 2), schedule, seeded_noise(z_T.shape)))
        )
