"""CLIP's image encoders, frozen: images as prompts."""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from ldm import pretrained
from ldm.conditioning import clip_tower
from ldm.conditioning.base import Conditioner, Size
from ldm.typing import Conditioning, FiniteFloat, PositiveFloat, Proportion

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Per channel, of the training images in [0, 1] of OpenAI's and LAION's towers."""


class ClipImage(Conditioner):
    """c = an image's embedding by CLIP's tower (Radford et al. 2021), as one token; its null is zeros.

    Args:
        name, weights: as in `ClipText`.
        patches: use the patch tokens, of the tower's own width, as the context instead of the embedding.
        vector: use the embedding as the vector, too.
        mean, std: per channel, of the tower's training images.
    """

    def __init__(
        self,
        name: str,
        weights: str,
        dropout: Proportion,
        batch_key: str = "image",
        patches: bool = False,
        vector: bool = False,
        mean: Sequence[FiniteFloat] = MEAN,
        std: Sequence[PositiveFloat] = STD,
    ) -> None:
        super().__init__(batch_key, dropout)
        self.name, self.weights, self.patches, self.vector = name, weights, patches, vector
        self.tower = clip_tower.build_image_tower(name, patches).requires_grad_(False)
        config = clip_tower.model_config(name)
        vision = config["vision_cfg"]
        self.size, self.channels = vision["image_size"], config["embed_dim"]
        self.num_tokens, self.width = 1, self.channels
        if patches:
            self.num_tokens, self.width = (self.size // vision["patch_size"]) ** 2, vision["width"]
        self.mean, self.std = tuple(mean), tuple(std)
        pretrained.exclude_from_state_dict(self, "tower")
        self.train(False)

    def train(self, mode: bool = True) -> "ClipImage":
        """Set the mode of all but the frozen tower, which stays in evaluation mode."""
        super().train(mode)
        self.tower.eval()
        return self

    @torch.no_grad()
    def forward(self, values: UInt8[Tensor, "b 3 h w"]) -> Conditioning:
        """Encode images in 0..255."""
        output = self.tower(self.preprocess(values.to(self.device)))
        pooled, tokens = output if self.patches else (output, output[:, None])
        return Conditioning(context=tokens, vector=pooled if self.vector else None)

    def preprocess(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """Resize whole images to the tower's size, without a crop, and normalize their channels."""
        x = images.float() / 255
        if x.shape[-2:] != (self.size, self.size):
            x = interpolate(x, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return zeros."""
        context = torch.zeros(n, self.num_tokens, self.width, device=self.device)
        vector = torch.zeros(n, self.channels, device=self.device) if self.vector else None
        return Conditioning(context=context, vector=vector)

    def load_pretrained(self) -> None:
        """Load the tower. UserError if the weights are missing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # OpenAI's file is TorchScript, now deprecated
            clip_tower.load_tower(self.tower, self.name, self.weights, "visual")

    def describe_frozen_weights(self) -> dict[str, str]:
        return clip_tower.describe_weights(self.name, self.weights)
