"""Checks of config values: each error names the key and the value."""

import pytest

from ldm.cli.config.validate import check_sampling
from ldm.errors import UserError
from tests.support.sampling_models import sample_config

MISTAKES = [
    (["seed=1.5"], ["seed must be", "1.5"]),
    (["grid_scale=-1"], ["grid_scale must be", "-1"]),
    (["steps=2.0"], ["steps must be", "2.0", "write 2"]),
    (["scale=nan"], ["scale must be", "nan"]),
    (["aesthetic=null"], ["aesthetic must be", "null"]),
    (["negative_aesthetic=low"], ["negative_aesthetic must be", "low"]),
    (["size=large"], ["size=large: expected [height, width]", "1..65536"]),
    (["size=[64.5,64]"], ["size=[64.5, 64]: expected"]),
    (["size=0"], ["size=0: expected"]),
    (["crop=null"], ["crop=None: expected [top, left]"]),
    (["also=depth"], ["also=depth ", "+task@also.NAME=depth"]),
    (["guidance=nested", "guidance.scales={depth: a}"], ["guidance.scales must be numbers", "'a'"]),
]


def test_valid_values_pass_and_leave_no_folder_behind(tmp_path):
    check_sampling(sample_config(f"out={tmp_path}/new/sub", "original_size=512", "guidance=nested"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("overrides", "phrases"), MISTAKES, ids=[" ".join(o) for o, _ in MISTAKES])
def test_an_invalid_value_is_refused(tmp_path, overrides, phrases):
    with pytest.raises(UserError) as error:
        check_sampling(sample_config(f"out={tmp_path}", *overrides))
    message = str(error.value)
    assert message.startswith(phrases[0]) and all(phrase in message for phrase in phrases)


def test_only_a_whole_float_gets_the_integer_as_advice() -> None:
    for value, advice in ((2.0, "write 2"), (1.5, None), (-2.0, None)):
        with pytest.raises(UserError, match="steps must be a whole number") as error:
            sample_config(f"steps={value}")
        assert ("write" in str(error.value)) == (advice is not None) and (advice or "") in str(error.value)
