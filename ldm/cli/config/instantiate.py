"""Build objects from trusted configs with Hydra; `ldm.interop.instantiate` is for those in model files."""

from typing import Any

import hydra.utils


def instantiate(config: Any) -> Any:
    """Build the object that a config describes, with its lists and dicts converted to plain Python ones."""
    return hydra.utils.instantiate(config, _convert_="all")
