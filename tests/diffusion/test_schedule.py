import pytest
import torch
from diffusers import DDPMScheduler

from ldm.diffusion.schedule import Cosine, Linear, ScaledLinear, Schedule


def test_time_zero_is_clean_and_noise_only_grows(schedule: Schedule) -> None:
    t = torch.arange(schedule.num_steps + 1.0)
    alpha, sigma = schedule.alpha(t).flatten(), schedule.sigma(t).flatten()
    assert (alpha[0], sigma[0]) == (1, 0)
    assert (alpha.diff() < 0).all() and (sigma.diff() >= 0).all()
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(alpha))


@pytest.mark.parametrize(
    ("ours", "name", "start", "end"),
    [
        (Linear(), "linear", 1e-4, 0.02),
        (ScaledLinear(), "scaled_linear", 0.00085, 0.012),
        (Cosine(), "squaredcos_cap_v2", 1e-4, 0.02),
    ],
)
def test_equals_the_peers_table(ours: Schedule, name: str, start: float, end: float) -> None:
    peer = DDPMScheduler(1000, beta_start=start, beta_end=end, beta_schedule=name)
    t = torch.arange(1, 1001.0)
    torch.testing.assert_close(ours.alpha(t).flatten().square(), peer.alphas_cumprod, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize(("start", "end", "ratio"), [(0.00085, 0.012, 14.615), (0.0015, 0.0195, 83.8)])
def test_published_noise_at_the_end(start: float, end: float, ratio: float) -> None:
    schedule = ScaledLinear(1000, start, end)
    T = torch.tensor([1000.0])
    assert (schedule.sigma(T) / schedule.alpha(T)).item() == pytest.approx(ratio, rel=1e-3)
    assert schedule.lam(T).item() == pytest.approx(-torch.tensor(ratio).log().item(), abs=1e-3)


def test_published_networks_count_from_zero() -> None:
    assert ScaledLinear().network_time(torch.tensor([1.0, 1000.0])).tolist() == [0, 999]


def test_refuses_what_is_no_schedule() -> None:
    with pytest.raises(ValueError, match="0.02, 0.01"):
        Linear(1000, 0.02, 0.01)
    with pytest.raises(ValueError, match="max_beta"):
        Cosine(1000, 0.008, 1.0)


def test_is_no_weight() -> None:
    assert not Cosine().state_dict()
