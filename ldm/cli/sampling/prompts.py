"""Read prompts from the command line or a text file."""

from os.path import isfile
from pathlib import Path
from typing import Any

from omegaconf import ListConfig

from ldm.errors import UserError

EXAMPLE = "prompts=\"['a ...']\""


def read_prompts(prompts: Any) -> list[str] | None:
    """Return a list of prompts as strings, or the non-empty lines of a text file; None for None."""
    if prompts is None:
        return None
    if isinstance(prompts, ListConfig):
        texts = [str(prompt) for prompt in prompts]
    # Path.is_file may raise for a caption that is too long for a path
    elif not isinstance(prompts, str) or not isfile(prompts):
        raise UserError(f"no prompt file {prompts}: give a text file, or the prompts as {EXAMPLE}")
    else:
        texts = [line.strip() for line in _read_utf8(prompts).splitlines() if line.strip()]
    if not texts:
        raise UserError(f"prompts={prompts} is empty: give prompts as {EXAMPLE}")
    return texts


def _read_utf8(path: str) -> str:
    try:
        return Path(path).read_text("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(f"prompts={path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
