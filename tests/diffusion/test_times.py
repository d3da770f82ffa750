import math

import pytest
import torch

from ldm.diffusion.times import LogitNormalTimes, UniformTimes, leading, linspace, trailing


@pytest.mark.parametrize("spacing", [leading, trailing, linspace])
def test_every_step_count_falls_strictly_to_zero(spacing) -> None:  # noqa: ANN001
    for steps in range(1, 1001):
        times = spacing(1000, steps)
        assert len(times) == steps + 1 and times[-1] == 0
        assert (times.diff() < 0).all()
        assert 1000 * (1 - 1 / steps) <= times[0] <= 1000 and times[-2] >= 1


def test_published_spacings() -> None:
    assert leading(1000, 50)[:2].tolist() == [981, 961]
    assert trailing(1000, 50)[:2].tolist() == [1000, 980]
    assert linspace(1000, 2).tolist() == [1000, 1, 0]


@pytest.mark.parametrize("steps", [0, 1001])
def test_refuses_step_counts_out_of_range(steps: int) -> None:
    with pytest.raises(ValueError, match=rf"1..1000, not {steps}"):
        trailing(1000, steps)


def test_uniform_times_hit_every_step_equally() -> None:
    t = UniformTimes(10)(torch.arange(1000) / 1000)
    assert torch.bincount(t.long()).tolist() == [0] + [100] * 10


def test_logit_normal_has_the_stated_median_and_stays_in_range() -> None:
    u = (torch.arange(10_000) + 0.5) / 10_000
    t = LogitNormalTimes(1000, mean=0.5, std=1.0)(u)
    assert t.median().item() == pytest.approx(1000 / (1 + math.exp(-0.5)), abs=1)
    extreme = LogitNormalTimes(1000)(torch.tensor([0.0, 1 - 2**-24]))
    assert extreme.min() >= 1 and extreme.max() <= 1000
