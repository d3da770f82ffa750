"""Schedules and prediction types for the tests of the mathematics."""

from functools import partial

import pytest

from ldm.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, V
from ldm.diffusion.schedule import Cosine, Karras, Linear, RectifiedFlow, ScaledLinear, Schedule

SCHEDULES = {
    "linear": Linear,
    "scaled_linear": ScaledLinear,
    "scaled_linear_ldm": partial(ScaledLinear, beta_start=0.0015, beta_end=0.0195),
    "cosine": Cosine,
    "shifted": partial(ScaledLinear, shift=2.0),
    "linear_zero_snr": partial(Linear, zero_terminal_snr=True),
    "scaled_linear_zero_snr": partial(ScaledLinear, zero_terminal_snr=True),
    "cosine_zero_snr": partial(Cosine, zero_terminal_snr=True, shift=0.5),
    "rectified_flow": RectifiedFlow,
    "rectified_flow_shifted": partial(RectifiedFlow, shift=3.0),
    "karras": Karras,
}
PARAMETERIZATIONS = {"eps": Eps, "x0": X0, "v": V, "flow": Flow, "edm": EDM}


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return request.param()


@pytest.fixture(params=PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS)
def parameterization(request: pytest.FixtureRequest) -> Parameterization:
    return request.param()


PAIRS = {
    f"{name}-{y}": (schedule, parameterization)
    for name, schedule in SCHEDULES.items()
    for y, parameterization in PARAMETERIZATIONS.items()
    if not (y == "eps" and schedule().has_zero_terminal_snr)
}


@pytest.fixture(params=PAIRS.values(), ids=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[Schedule, Parameterization]:
    """Every schedule with every prediction type, without the pairs that are refused."""
    schedule, parameterization = request.param
    return schedule(), parameterization()
