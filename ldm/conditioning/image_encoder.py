"""A image encoder trained jointly with the denoiser: variations of a image."""

import torch
from jaxtyping import Float, UInt8
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.conditioning.base import Conditioner, Size
from ldm.conditioning.spatial import pixels
from ldm.errors import InvalidValue
from ldm.typing import Conditioning


class ImageEncoder(Conditioner):
    """c = a image's embedding by a vision transformer (Dosovitskiy et al. 2021), as one token.

    The null is zeros. Trained from scratch with the denoiser, at any size, where `ClipImage` is another's
    and frozen.

    Args:
        size: pixels a side that the tower sees; images are resized to it as a whole.
        patch: pixels a side of what becomes a token inside.
        width: of the tower and of what it gives.
        patches: the patches' tokens are the context, instead of the embedding.
        vector: the embedding fills the vector slot, too.
    """

    def __init__(
        self,
        size: int,
        patch: int,
        width: int,
        depth: int,
        num_heads: int,
        dropout: float,
        patches: bool = False,
        vector: bool = False,
        key: str = "image",
    ) -> None:
        super().__init__(key, dropout)
        if size % patch or width % num_heads:
            raise InvalidValue(
                f"a tower of size {size}, patch {patch}, width {width} and num_heads {num_heads}: patches "
                "must fill the size, and heads the width"
            )
        self.size, self.width, self.patches, self.vector = size, width, patches, vector
        self.num_tokens = (size // patch) ** 2 if patches else 1
        self.tower = VisionTransformer(
            size, patch, width, depth, num_heads, mlp_ratio=4.0, output_dim=width, output_tokens=True
        )

    def forward(self, values: UInt8[Tensor, "b 3 h w"]) -> Conditioning:
        """The condition of each image."""
        pooled, tokens = self.tower(self.prepared(values.to(self.device)))
        context = tokens if self.patches else pooled[:, None]
        return Conditioning(context=context, vector=pooled if self.vector else None)

    def prepared(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """In [-1, 1] and the tower's size."""
        x = pixels(images)
        if x.shape[-2:] == (self.size, self.size):
            return x
        return interpolate(x, (self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Zeros."""
        context = torch.zeros(n, self.num_tokens, self.width, device=self.device)
        vector = torch.zeros(n, self.width, device=self.device) if self.vector else None
        return Conditioning(context=context, vector=vector)
