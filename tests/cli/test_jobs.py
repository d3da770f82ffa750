"""The jobs' table: intervals, gaps, and the words a user reads."""

import pytest
import torch

from ldm.cli.history import Training
from ldm.cli.jobs import Result, Score, table
from ldm.evaluation.alignment import wilson


def test_a_share_has_wilsons_interval_and_other_numbers_the_normal_one() -> None:
    share = Score.of(torch.tensor([1.0] * 30 + [0.0] * 10))
    assert (share.mean, share.low, share.high) == (0.75, *wilson(30, 40))
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 2 + 5
    found = Score.of(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2 / 100, rel=0.05)


@pytest.mark.parametrize(("null", "drawn", "ceiling", "closed"), [(0.2, 0.8, 1.0, 75), (80.0, 20.0, 0.0, 75)])
def test_the_gap_is_between_null_and_ceiling(null, drawn, ceiling, closed) -> None:
    scores = [Score(x, x - 0.1, x + 0.1) for x in (drawn, null, ceiling)]
    result = Result("right", *scores, bicubic=None)
    assert round(100 * result.closed) == closed
    assert f"| {closed} % | yes |" in table({"demo_class": result}, 10)


def test_intervals_that_meet_are_said() -> None:
    scores = [Score(x, x - 0.3, x + 0.3) for x in (0.6, 0.2, 1.0)]
    trained = Result("right", *scores, bicubic=None, training=Training(1100, 123.4, None))
    assert table({"demo_class": trained}, 10).endswith("| 50 % | no |")
    assert "| demo_class | 1,100 | 123 | right |" in table({"demo_class": trained}, 10)
