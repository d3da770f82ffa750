"""Objects built from a config get plain Python containers."""

from omegaconf import OmegaConf

from ldm.cli.config.instantiate import instantiate


def test_lists_and_dicts_become_plain_python_containers():
    config = {"_target_": "builtins.dict", "levels": [1, 2], "nested": {"a": [1]}}
    built = instantiate(OmegaConf.create(config))
    assert type(built["levels"]) is list
    assert type(built["nested"]) is dict and type(built["nested"]["a"]) is list
