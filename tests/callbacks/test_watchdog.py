"""The watch over each step; tests/test_kill.py has a rank that hangs."""

import faulthandler

import pytest

from ldm.callbacks.watchdog import Watchdog
from tests import tiny


@pytest.fixture
def calls(monkeypatch):
    """What faulthandler is told: seconds, or nothing where the watch ends."""
    made = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: made.append(seconds))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: made.append(None))
    return made


def test_each_batch_is_watched_and_the_end_is_not(calls):
    tiny.fit(tiny.first_stage(), [tiny.batch(1)] * 3, [Watchdog(7.0)])
    assert calls[:4] == [7.0] * 4 and set(calls[4:]) == {None}


def test_a_failure_ends_the_watch(calls):
    with pytest.raises(KeyError):
        tiny.fit(
            tiny.first_stage(), [tiny.batch(1), {"position": tiny.batch(1)["position"]}], [Watchdog(7.0)]
        )
    assert calls[:2] == [7.0, 7.0] and calls[-1] is None


def test_validation_may_take_its_time(calls, tmp_path):
    trainer = tiny.trainer(2, [Watchdog(7.0)], validate_every=1)
    trainer.fit(tiny.first_stage(), tiny.data(tmp_path, 2))
    assert calls[:7] == [7.0, 7.0, None, 7.0, 7.0, None, 7.0] and set(calls[7:]) == {None}


def test_no_time_at_all_is_refused():
    with pytest.raises(ValueError, match="more than 0 seconds"):
        Watchdog(0)
