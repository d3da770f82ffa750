"""All that ldm uses of Hydra's private modules, where there is no public way. Tried with hydra-core 1.3.8.

`get_args_parser` knows Hydra's command-line flags (--cfg, --info, -m, ...). `apply_overrides` sets values in
a config that is already composed: their types can be compared with those before without composing twice.
"""

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser

apply_overrides = ConfigLoaderImpl._apply_overrides_to_config

__all__ = ["apply_overrides", "get_args_parser"]
