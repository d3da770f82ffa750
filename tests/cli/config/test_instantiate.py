"""A user's own config becomes plain Python objects."""

from omegaconf import OmegaConf

from ldm.cli.config.instantiate import instantiate


def test_lists_and_dicts_become_plain_python_containers():
    built = instantiate(OmegaConf.create({"_target_": "builtins.dict", "levels": [1, 2], "deep": {"a": [1]}}))
    assert type(built["levels"]) is list and type(built["deep"]) is dict and type(built["deep"]["a"]) is list
