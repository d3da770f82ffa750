"""CLIP's text encoder, frozen: what Stable Diffusion 1 hears."""

import warnings

import open_clip
import torch
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn

from ldm import pretrained
from ldm.conditioning.base import Conditioner
from ldm.conditioning.tokenizer import ClipTokenizer
from ldm.typing import Conditioning


class ClipText(Conditioner):
    """c = LayerNorm(last hidden state) of CLIP's frozen text tower, every token of it (Radford et al. 2021).

    The null is the encoding of the empty text, computed when the weights are loaded and kept in `empty`.
    Checkpoints hold `empty` alone; the tower is named by `identity`.

    Args:
        tokenizer: 77 tokens; padded with 49407 for Stable Diffusion, with 0 for open_clip.
        name: of the architecture among open_clip's model configs.
        weights: their name in `ldm.pretrained`.
    """

    empty: Tensor

    def __init__(
        self,
        tokenizer: ClipTokenizer,
        name: str = "ViT-L-14-quickgelu",
        weights: str = "clip_vit_l14",
        dropout: float = 0.1,
        key: str = "caption",
    ) -> None:
        super().__init__(key, dropout)
        self.tokenizer, self.name, self.weights = tokenizer, name, weights
        self.tower = _tower(name).requires_grad_(False)
        if (tokenizer.length, tokenizer.vocabulary) != (self.tower.context_length, self.tower.vocab_size):
            raise ValueError(
                f"{name} reads {self.tower.context_length} tokens of {self.tower.vocab_size} kinds, "
                f"but the tokenizer gives {tokenizer.length} of {tokenizer.vocabulary}"
            )
        self.register_buffer("empty", torch.zeros(tokenizer.length, self.tower.width))
        pretrained.keep_out_of_checkpoints(self, "tower")
        self.train(False)

    def train(self, mode: bool = True) -> "ClipText":
        """The tower is frozen: it stays in evaluation mode."""
        super().train(mode)
        self.tower.eval()
        return self

    @torch.no_grad()
    def forward(self, values: list[str]) -> Conditioning:
        """The condition of each text."""
        return Conditioning(context=self.tower(self.tokenizer(values).to(self.empty.device)))

    def null(self, n: int) -> Conditioning:
        """The recorded encoding of the empty text."""
        return Conditioning(context=self.empty.expand(n, -1, -1))

    def load_pretrained(self) -> None:
        """Loads the tower and records the null. UserError where the weights are missing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # OpenAI's file is TorchScript, now deprecated
            published = torch.jit.load(pretrained.find(self.weights), map_location="cpu").state_dict()
        self.tower.load_state_dict({key: published[key] for key in self.tower.state_dict()})
        self.empty.copy_(self([""]).context[0])

    def identity(self) -> dict[str, str]:
        sha256 = pretrained.WEIGHTS[self.weights].sha256
        return {"name": self.name, "weights": self.weights, "sha256": sha256}


def _tower(name: str) -> TextTransformer:
    """The text half of an open_clip architecture, without the projection into the joint space."""
    config = open_clip.get_model_config(name)
    text = config["text_cfg"]
    return TextTransformer(
        context_length=text["context_length"],
        vocab_size=text["vocab_size"],
        width=text["width"],
        heads=text["heads"],
        layers=text["layers"],
        act_layer=QuickGELU if config["quick_gelu"] else nn.GELU,
        proj_type="none",
        pool_type="none",
    )
