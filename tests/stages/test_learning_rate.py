"""Factors of the learning rate by step."""

import math

import pytest

from ldm.stages.learning_rate import WarmUp, WarmUpCosine


def test_warm_up_is_linear_and_ends_at_1():
    assert [WarmUp(4)(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert WarmUp()(0) == 1.0


def test_the_cosine_falls_from_1_to_final():
    factor = WarmUpCosine(total_steps=110, warmup_steps=10, final=0.2)
    assert factor(0) == pytest.approx(0.1) and factor(10) == 1.0
    assert (
        factor(60) == pytest.approx(0.6) and factor(110) == pytest.approx(0.2) and factor(500) == factor(110)
    )
    assert factor(35) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)


def test_a_warm_up_longer_than_training_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=20 .*total_steps=20"):
        WarmUpCosine(20, 20)


def test_a_negative_warm_up_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=-1"):
        WarmUp(-1)
