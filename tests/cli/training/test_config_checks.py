"""Configs that are refused before anything is built."""

import pytest

from ldm.cli.config.compose import compose
from ldm.cli.training.config_checks import check_config
from ldm.errors import UserError


@pytest.mark.parametrize("name", ["16-mixed", "16-true", "16"])
def test_half_precision_with_scaled_gradients_is_refused(tmp_path, name):
    words = ["experiment=debug/ae", "data.shards=shards", f"run={tmp_path}", f"trainer.precision={name}"]
    with pytest.raises(UserError, match=rf"trainer\.precision={name} .* trainer\.precision=bf16-mixed"):
        check_config(compose("train", words))
