"""Frozen text encoders of the library `transformers`: T5 and its kin."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm import pretrained
from ldm.conditioning.base import Size, repeat_samples
from ldm.conditioning.prompt_weights import parse, weigh
from ldm.conditioning.text import FrozenTextEncoder
from ldm.errors import InvalidValue, UserError
from ldm.typing import Channels, Conditioning, Proportion, Tokens


class PretrainedTokenizer:
    """The tokenizer that belongs to an encoder: a text's tokens, its special ones, then padding to `length`.

    Args:
        length: tokens per text, special ones included. The rest is cut off, with a warning the first time.
    """

    chunks = 1

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length
        self.warns = True

    @property
    def max_tokens(self) -> int:
        """The number of a text's tokens that are not cut off."""
        return self.length - int(self.tokenizer.num_special_tokens_to_add())

    def __call__(self, texts: Sequence[str]) -> tuple[Tokens, Bool[Tensor, "b l"]]:
        """Return the token ids, and which of them are no padding."""
        for text in texts if self.warns else ():
            if cut := self.cut_off(text):
                warnings.warn(
                    f"a text is longer than {self.length} tokens, and its end {cut!r} was cut off: {text!r} "
                    "(later cuts are not reported; length=N of the conditioner takes longer texts)",
                    stacklevel=3,
                )
                self.warns = False
                break
        encoded = self._encode(list(texts))
        return encoded["input_ids"], encoded["attention_mask"].bool()

    def with_weights(self, texts: Sequence[str]) -> tuple[Tokens, Bool[Tensor, "b l"], Float[Tensor, "b l"]]:
        """Return token ids and mask of texts with weights in brackets, and the weight of each token.

        A token has the weight of its first letter; special tokens and padding have 1. UserError for
        ill-formed brackets.
        """
        parts = [parse(text) for text in texts]
        plain = ["".join(part.text for part in row) for row in parts]
        tokens, mask = self(plain)
        weights = torch.ones(tokens.shape)
        offsets = self._encode(plain, return_offsets_mapping=True)["offset_mapping"].tolist()
        for i, row in enumerate(parts):
            of_letters = [part.weight for part in row for _ in part.text]
            for j, (start, end) in enumerate(offsets[i]):
                if end > start:
                    weights[i, j] = of_letters[start]
        return tokens, mask, weights

    def cut_off(self, text: str, weighted: bool = False) -> str:
        """Return the end of a text that does not fit; empty if all of it fits."""
        plain = "".join(part.text for part in parse(text)) if weighted else text
        encoded = self.tokenizer(plain, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        cut = encoded["offset_mapping"][self.max_tokens :]
        return plain[cut[0][0] :].strip() if cut else ""

    def _encode(self, texts: list[str], **options: bool) -> Any:
        length = {"padding": "max_length", "truncation": True, "max_length": self.length}
        return self.tokenizer(texts, return_tensors="pt", **length, **options)


class PretrainedText(FrozenTextEncoder):
    """c = the last hidden states of a frozen text encoder, its padding masked.

    T5 (Raffel et al. 2020) in Imagen (Saharia et al. 2022, 2.1) and PixArt-α (Chen et al. 2024, 2.3). Any
    model that `transformers.AutoModelForTextEncoding` loads will do: T5, mT5 and UMT5 of every size, BERT,
    RoBERTa. The null is the encoding of the empty text, computed when the weights are loaded and stored in
    `empty`. Checkpoints hold only `empty`, and name the encoder (`describe_frozen_weights`).

    Args:
        name: a model on the Hugging Face Hub, or a folder that `save_pretrained` wrote.
        width: channels of its hidden states.
        length: tokens per text, the end token included.
        revision: branch, tag or commit on the Hub.
        bf16: compute in bf16, with half of the memory. T5's values exceed fp16.
    """

    chunks_are_fixed = True
    tokenizer: PretrainedTokenizer
    empty: Tensor
    empty_mask: Tensor

    def __init__(
        self,
        name: str,
        width: Channels,
        length: Channels = 120,
        dropout: Proportion = 0.1,
        batch_key: str = "caption",
        revision: str = "main",
        bf16: bool = True,
    ) -> None:
        super().__init__(batch_key, dropout)
        self.name, self.width, self.length = name, width, length
        self.revision, self.bf16 = revision, bf16
        self.encoder: nn.Module | None = None
        """Loaded by `load_pretrained`, since its architecture is stored with its weights."""
        self.register_buffer("empty", torch.zeros(length, width))
        self.register_buffer("empty_mask", torch.arange(length) < 1)
        pretrained.exclude_from_state_dict(self, "encoder")

    def train(self, mode: bool = True) -> "PretrainedText":
        """Set the mode of all but the frozen encoder, which stays in evaluation mode."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Encode texts; `load_pretrained` comes first."""
        assert self.encoder is not None, "load_pretrained loads the encoder"
        weights: Float[Tensor, "b l"] | None = None
        if self.uses_weights:
            tokens, mask, weights = self.tokenizer.with_weights(texts)
        else:
            tokens, mask = self.tokenizer(texts)
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            output = self.encoder(input_ids=tokens, attention_mask=mask.long())
        context = output.last_hidden_state.float() * mask[..., None]  # b l d
        context = context if weights is None else weigh(context, self.empty[None], weights)
        return Conditioning(context=context, context_mask=mask)

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return the stored encoding of the empty text."""
        empty = Conditioning(context=self.empty[None], context_mask=self.empty_mask[None])
        return repeat_samples(empty, n)

    def set_chunks(self, chunks: int) -> None:
        if chunks > 1:
            raise InvalidValue(
                f"prompt_chunks={chunks}, but this model's text encoder takes one chunk of up to "
                f"{self.tokenizer.max_tokens} tokens: use prompt_chunks=null and shorter prompts"
            )

    def load_pretrained(self) -> None:
        """Load the encoder and compute the null. UserError if it cannot be loaded or has another width."""
        try:
            from transformers import AutoModelForTextEncoding, AutoTokenizer
        except ImportError as error:
            raise UserError(
                "conditioner=t5 needs the package transformers: pip install 'ldm[transformers]'"
            ) from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.name, revision=self.revision)
            dtype = torch.bfloat16 if self.bf16 else torch.float32
            encoder = AutoModelForTextEncoding.from_pretrained(self.name, revision=self.revision, dtype=dtype)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the text encoder {self.name} cannot be loaded ({' '.join(str(error).split())[:200]}): give "
                "a name on the Hugging Face Hub or a folder that save_pretrained wrote"
            ) from error
        width = getattr(encoder.config, "d_model", None) or encoder.config.hidden_size
        if width != self.width:
            raise UserError(
                f"{self.name} has hidden states of {width} channels, not {self.width}: set the conditioner's "
                f"width={width} and denoiser.context_channels={width}"
            )
        self.tokenizer = PretrainedTokenizer(tokenizer, self.length)
        self.encoder = encoder.requires_grad_(False).eval().to(self.device)
        empty = self.encode([""])
        assert empty.context is not None and empty.context_mask is not None
        self.empty.copy_(empty.context[0])
        self.empty_mask.copy_(empty.context_mask[0])

    def describe_frozen_weights(self) -> dict[str, str]:
        return {"encoder": f"{self.name} {self.revision}"}
