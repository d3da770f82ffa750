"""The base classes of text encoders."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from ldm.conditioning.base import Compose, Conditioner, Size
from ldm.typing import Conditioning


class Tokenizer(Protocol):
    """What sampling asks of an encoder's tokenizer."""

    chunks: int
    """Number of chunks in which a text is encoded."""
    warns: bool
    """Whether the next text that is cut off gives a warning."""

    @property
    def max_tokens(self) -> int:
        """The number of a text's tokens that are not cut off."""

    def cut_off(self, text: str, weighted: bool = False) -> str:
        """Return the end of a text that is cut off; empty if all of it fits."""


class TextEncoder(Conditioner):
    """An encoder of texts as tokens."""

    tokenizer: Tokenizer
    chunks_are_fixed: ClassVar[bool] = False
    """Whether the encoder was trained for one number of chunks and takes no other."""
    uses_weights: bool = False
    """Whether texts have weights in brackets, see `ldm.conditioning.prompt_weights`; never in training."""

    @abstractmethod
    def set_chunks(self, chunks: int) -> None:
        """Encode texts, and the null, in this number of chunks; InvalidValue if the encoder cannot."""


class FrozenTextEncoder(TextEncoder):
    """A text encoder that is not trained, whose states `encode_latents` can cache."""

    def read(self, batch: Mapping[str, Any], size: Size | None) -> Sequence[str] | Conditioning:
        """Return the texts, or their states where the batch has them: `text` and `text_mask`."""
        if "text" not in batch:
            return super().read(batch, size)
        mask = batch["text_mask"].bool() if "text_mask" in batch else None
        return Conditioning(context=batch["text"].float(), context_mask=mask)

    def forward(self, values: Sequence[str] | Conditioning) -> Conditioning:
        """Encode texts, or return their cached states on the conditioner's device."""
        if not isinstance(values, Conditioning):
            return self.encode(values)
        assert values.context is not None
        mask = None if values.context_mask is None else values.context_mask.to(self.device)
        return Conditioning(context=values.context.to(self.device), context_mask=mask)

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Encode texts."""


def cached_encoder(conditioner: Compose) -> FrozenTextEncoder | None:
    """Return the only text encoder of a model if its states can be cached; None otherwise."""
    encoders = [part for part in conditioner.modules() if isinstance(part, TextEncoder)]
    if len(encoders) != 1 or not isinstance(encoders[0], FrozenTextEncoder):
        return None
    return None if encoders[0].null(1).vector is not None else encoders[0]


def encoder_identity(conditioner: Compose) -> str:
    """Return name and hash of the conditioner's frozen weights as text."""
    return json.dumps(conditioner.describe_frozen_weights(), sort_keys=True)
