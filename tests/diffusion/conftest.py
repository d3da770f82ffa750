"""Schedules and prediction types that the tests of the mathematics go through."""

import pytest

from ldm.diffusion.parameterization import X0, Eps, Parameterization, V
from ldm.diffusion.schedule import Cosine, Linear, ScaledLinear, Schedule


@pytest.fixture(params=[Linear, ScaledLinear, Cosine])
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return request.param()


@pytest.fixture(params=[Eps, X0, V])
def parameterization(request: pytest.FixtureRequest) -> Parameterization:
    return request.param()
