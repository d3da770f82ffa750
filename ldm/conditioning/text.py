"""The base class of text encoders."""

from abc import abstractmethod
from typing import ClassVar

from ldm.conditioning.base import Conditioner
from ldm.conditioning.tokenizer import ClipTokenizer


class TextEncoder(Conditioner):
    """An encoder of texts as tokens."""

    tokenizer: ClipTokenizer
    chunks_are_fixed: ClassVar[bool] = False
    """Whether the encoder was trained for one number of chunks and takes no other."""
    uses_weights: bool = False
    """Whether texts have weights in brackets, see `ldm.conditioning.prompt_weights`; never in training."""

    @abstractmethod
    def set_chunks(self, chunks: int) -> None:
        """Encode texts, and the null, in this number of chunks; InvalidValue if the encoder cannot."""
