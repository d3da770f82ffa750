"""Objects built from the user's own configs, by Hydra; for configs in files see `ldm.interop.instantiate`."""

from typing import Any

import hydra.utils


def instantiate(config: Any) -> Any:
    """Build the object that the user's config describes; its lists and dicts become plain Python ones."""
    return hydra.utils.instantiate(config, _convert_="all")
