"""The generator's adversarial weight, on one rank and on two, and its ramp."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ldm.losses.adaptive_weight import adaptive_weight, ramp


def losses(w: torch.Tensor, nll: tuple[float, float], g: tuple[float, float]) -> tuple[torch.Tensor, ...]:
    """Return two losses with these gradients with respect to w."""
    return (w * torch.tensor(nll)).sum(), (w * torch.tensor(g)).sum()


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    w = torch.ones(2, requires_grad=True)
    weight = adaptive_weight(*losses(w, (3.0, 4.0), (0.0, -2.0)), w, eps=0.5)
    assert weight.item() == 5.0 / 2.5 and not weight.requires_grad
    assert w.grad is None


def test_the_adaptive_weight_is_clamped() -> None:
    w = torch.ones(2, requires_grad=True)
    assert adaptive_weight(*losses(w, (3.0, 4.0), (0.0, 0.0)), w).item() == 1e4
    assert adaptive_weight(*losses(w, (3.0, 4.0), (1.0, 0.0)), w, maximum=2.0).item() == 2.0
    assert adaptive_weight(*losses(w, (0.0, 0.0), (1.0, 0.0)), w).item() == 0.0


def test_both_losses_can_still_be_trained_on() -> None:
    w = torch.ones(2, requires_grad=True)
    nll, g = losses(w.square(), (1.0, 0.0), (0.0, 1.0))
    (nll + adaptive_weight(nll, g, w) * g).backward()
    torch.testing.assert_close(w.grad, torch.tensor([2.0, 2.0]), rtol=1e-3, atol=0)


def test_the_loss_factor_keeps_gradients_from_vanishing_in_fp16() -> None:
    w = torch.ones(2, requires_grad=True)
    nll, g = ((w.half() * torch.tensor(slope)).sum().float() for slope in ((3e-8, 4e-8), (0.0, 1e-8)))
    weight = adaptive_weight(nll, g, w, loss_factor=torch.tensor(2.0**16), eps=0.0)
    torch.testing.assert_close(weight, torch.tensor(5.0), rtol=0.01, atol=0)


@pytest.mark.parametrize("slopes", [((torch.inf, 1.0), (1.0, 1.0)), ((1.0, 1.0), (torch.inf, 1.0))])
def test_gradients_that_overflow_give_nan_which_no_step_is_taken_with(slopes) -> None:
    w = torch.ones(2, requires_grad=True)
    assert adaptive_weight(*losses(w, *slopes), w).isnan()


def run_rank(rank: int, store: str) -> None:
    """Run one of two ranks with different gradients and print its weight."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    w = torch.ones(2, requires_grad=True)
    nll, g = ((6.0, 0.0), (0.0, 8.0))[rank], ((1.0, 3.0), (3.0, -3.0))[rank]
    print(adaptive_weight(*losses(w, nll, g), w, eps=0.5).item())
    dist.destroy_process_group()


@pytest.mark.multiprocess
def test_two_ranks_agree_on_the_weight_of_their_mean_gradients(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, __file__, str(tmp_path / "store")]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True, env=env) for rank in (0, 1)
    ]
    weights = [float(process.communicate(timeout=60)[0]) for process in ranks]
    # Mean gradients are (3, 4) and (2, 0); separately the ranks would get 6 / 3.66 and 8 / 4.74.
    assert weights == [5.0 / 2.5] * 2


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.0), (99, 0.0), (100, 0.0), (125, 0.25), (200, 1.0), (10**6, 1.0)]
)
def test_the_ramp(step: int, expected: float) -> None:
    assert ramp(step, start=100, ramp_steps=100) == expected


def test_a_ramp_of_no_steps_is_a_switch() -> None:
    assert [ramp(step, start=5, ramp_steps=0) for step in (4, 5, 6)] == [0.0, 1.0, 1.0]


if __name__ == "__main__":
    run_rank(int(sys.argv[2]), sys.argv[1])
