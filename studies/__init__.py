"""Comparisons that regenerate docs/results: they may import all of `ldm`, and nothing in `ldm` imports them."""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parent / "configs"
