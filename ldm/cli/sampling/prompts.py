"""Prompts: read them, and set how a model's text encoders take long and weighted ones."""

from collections.abc import Sequence
from os.path import isfile
from pathlib import Path
from textwrap import shorten
from typing import Any

from omegaconf import DictConfig, ListConfig

from ldm.conditioning.prompt_weights import parse
from ldm.conditioning.text import TextEncoder
from ldm.errors import UserError
from ldm.model import LatentDiffusion

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


def collect_texts(cfg: DictConfig, prompts: Sequence[str] | None) -> list[str]:
    """Return every different text that the model will encode; UserError for ill-formed weights in one."""
    given = [*(prompts or ()), cfg.negative, cfg.task.get("prompt")]
    texts = list(dict.fromkeys(str(text) for text in given if text is not None))
    if cfg.prompt_weights:
        for text in texts:
            parse(text)
    return texts


def set_prompt_options(model: LatentDiffusion, chunks: int | None, weights: bool) -> None:
    """Set how the model's text encoders take prompts.

    UserError for a model without text encoders, or one that cannot take several chunks.

    Args:
        chunks: of each prompt; None is the number of training.
        weights: whether (word:1.3) gives a word more weight.
    """
    encoders = _text_encoders(model)
    if not encoders and (chunks is not None or weights):
        key = "prompt_chunks" if chunks is not None else "prompt_weights"
        raise UserError(f"this model does not use prompts: remove {key}")
    for encoder in encoders:
        if chunks is not None:
            encoder.set_chunks(chunks)
        encoder.uses_weights = weights


def report_cuts(model: LatentDiffusion, texts: Sequence[str]) -> None:
    """Print the first text whose end is cut off, and how many more there are."""
    encoders = _text_encoders(model)
    for encoder in encoders:
        encoder.tokenizer.warns = False  # as the cuts are reported here, before sampling
    for encoder in encoders[:1]:  # several towers of a model cut a text at the same token
        tokenizer = encoder.tokenizer
        cuts = {text: cut for text in texts if (cut := tokenizer.cut_off(text, encoder.uses_weights))}
        if cuts:
            text, cut = next(iter(cuts.items()))
            others = f", and those of {len(cuts) - 1:,} other prompts" if len(cuts) > 1 else ""
            remedy = "" if encoder.chunks_are_fixed else f"; prompt_chunks={tokenizer.chunks + 1} takes more"
            print(
                f"warning: the end {shorten(cut, 80)!r} of the prompt {shorten(text, 60)!r}{others} is cut "
                f"off, after {tokenizer.max_tokens} tokens{remedy}"
            )


def _text_encoders(model: LatentDiffusion) -> list[TextEncoder]:
    return [module for module in model.conditioner.modules() if isinstance(module, TextEncoder)]


def _read_utf8(path: str) -> str:
    try:
        return Path(path).read_text("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(f"prompts={path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
