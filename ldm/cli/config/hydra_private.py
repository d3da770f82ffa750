"""Everything that ldm takes from private modules of Hydra. Tried with hydra-core 1.3.8.

There is no public way to get Hydra's command-line flags (--cfg, --info, -m, ...) as a parser.
"""

from hydra._internal.utils import get_args_parser

__all__ = ["get_args_parser"]
