"""Checks of config values: each mistake is one sentence with the key in it."""

import pytest

from ldm.cli.config.validate import check_sampling
from ldm.errors import UserError
from tests.cli.sampling.test_load import settings

MISTAKES = [
    (["seed=1.5"], "seed must be a whole number, not 1.5"),
    (["grid_scale=0"], "grid_scale must be 1 or more, not 0"),
    (["steps=2.0"], "steps must be a whole number, not 2.0: write 2"),
    (["scale=nan"], "scale must be a finite number, not nan"),
    (["aesthetic=null"], "aesthetic must be a finite number, not null"),
    (["negative_aesthetic=low"], "negative_aesthetic must be a finite number, not low"),
    (
        ["size=large"],
        "size=large: expected [height, width] in pixels, two whole numbers of 1 or more, for",
    ),
    (["size=[64.5,64]"], "size=[64.5, 64]: expected"),
    (["size=0"], "size=0: expected"),
    (["crop=null"], "crop=None: expected [top, left]"),
    (["also=depth"], "also=depth needs a name for the condition: write +task@also.NAME=depth"),
    (
        ["guidance=nested", "guidance.scales={depth: a}"],
        "guidance.scales.depth must be a finite number, not a",
    ),
    (["out="], "out is empty: give a folder"),
]


def test_a_wrong_setting_is_refused(tmp_path):
    check_sampling(settings(f"out={tmp_path}/new/er", "original_size=512", "guidance=nested"))
    assert not (tmp_path / "new").exists()
    for words, message in MISTAKES:
        with pytest.raises(UserError) as error:
            check_sampling(settings(f"out={tmp_path}", *words))
        assert str(error.value).startswith(message)
