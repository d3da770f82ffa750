"""Configs that are refused before anything is built."""

import pytest

from ldm.cli.config.compose import compose
from ldm.cli.training.config_checks import check_config
from ldm.errors import UserError


@pytest.mark.parametrize("name", ["auto", "16-mixed", "16", "bf16-mixed", "bf16", "32-true", "16-true", "64"])
def test_precisions_in_which_the_stages_cannot_train_are_refused(tmp_path, name):
    words = ["experiment=debug/ae", "data.shards=shards", f"run={tmp_path}", f"trainer.precision={name}"]
    cfg = compose("train", words)
    if name not in ("16-true", "64"):
        check_config(cfg)
        return
    with pytest.raises(UserError, match=rf"trainer\.precision={name} .* 16-mixed or 32-true"):
        check_config(cfg)
