"""Studies that regenerate the results in docs/. They may import all of `ldm`, which never imports them."""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parent / "configs"
