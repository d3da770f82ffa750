import pytest
import torch

from ldm.losses.logvar import LearnedLogVar


def test_its_optimum_is_the_log_of_the_distance() -> None:
    scale, d = LearnedLogVar(initial=-1.0), torch.tensor(0.3)
    optimizer = torch.optim.SGD(scale.parameters(), lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        scale(d).backward()
        optimizer.step()
    assert scale.s.exp().item() == pytest.approx(0.3, rel=1e-3)


def test_with_s_0_it_is_the_distance() -> None:
    assert LearnedLogVar()(torch.tensor(0.7)) == torch.tensor(0.7)
