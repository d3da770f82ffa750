"""CLIP's image encoders, frozen: images that are prompts."""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from ldm import pretrained
from ldm.conditioning import clip_tower
from ldm.conditioning.base import Conditioner, Size
from ldm.typing import Conditioning

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the colours that OpenAI's and LAION's towers were trained on, images in [0, 1]."""


class ClipImage(Conditioner):
    """c = a image's embedding by CLIP's tower (Radford et al. 2021), as one token; its null is zeros.

    Args:
        name, weights: as in `ClipText`.
        patches: the patches' tokens are the context, of the tower's own width, instead of the embedding.
        vector: the embedding fills the vector slot, too.
        mean, std: of a colour, in the images that the tower was trained on.
    """

    def __init__(
        self,
        name: str,
        weights: str,
        dropout: float,
        key: str = "image",
        patches: bool = False,
        vector: bool = False,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        super().__init__(key, dropout)
        self.name, self.weights, self.patches, self.vector = name, weights, patches, vector
        self.tower = clip_tower.image_tower(name, patches).requires_grad_(False)
        config = clip_tower.architecture(name)
        vision = config["vision_cfg"]
        self.size, self.channels = vision["image_size"], config["embed_dim"]
        self.num_tokens, self.width = 1, self.channels
        if patches:
            self.num_tokens, self.width = (self.size // vision["patch_size"]) ** 2, vision["width"]
        self.mean, self.std = tuple(mean), tuple(std)
        pretrained.keep_out_of_checkpoints(self, "tower")
        self.train(False)

    def train(self, mode: bool = True) -> "ClipImage":
        """The tower is frozen: it stays in evaluation mode."""
        super().train(mode)
        self.tower.eval()
        return self

    @torch.no_grad()
    def forward(self, values: UInt8[Tensor, "b 3 h w"]) -> Conditioning:
        """The condition of each image; bytes as they are stored."""
        embedded = self.tower(self.prepared(values.to(self.device)))
        pooled, tokens = embedded if self.patches else (embedded, embedded[:, None])
        return Conditioning(context=tokens, vector=pooled if self.vector else None)

    def prepared(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """In the tower's size and colours, resized as a whole."""
        x = images.float() / 255
        if x.shape[-2:] != (self.size, self.size):
            x = interpolate(x, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Zeros."""
        context = torch.zeros(n, self.num_tokens, self.width, device=self.device)
        vector = torch.zeros(n, self.channels, device=self.device) if self.vector else None
        return Conditioning(context=context, vector=vector)

    def load_pretrained(self) -> None:
        """Loads the tower. UserError where the weights are missing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # OpenAI's file is TorchScript, now deprecated
            clip_tower.load_tower(self.tower, self.name, self.weights, "visual")

    def identity(self) -> dict[str, str]:
        return clip_tower.identity(self.name, self.weights)
