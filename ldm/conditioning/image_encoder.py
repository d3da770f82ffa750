"""An image encoder trained jointly with the denoiser, for image variations."""

import torch
from jaxtyping import Float, UInt8
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.conditioning.base import Conditioner, Size
from ldm.conditioning.spatial import to_float_image
from ldm.errors import InvalidValue
from ldm.typing import Channels, Conditioning, Depth, Pixels, Proportion


class ImageEncoder(Conditioner):
    """c = an image's embedding by a vision transformer (Dosovitskiy et al. 2021), as one token.

    The null is zeros. Trained from scratch with the denoiser, at any image size; `ClipImage` is the
    pretrained, frozen alternative.

    Args:
        size: height and width in pixels of the tower's input; whole images are resized to it.
        patch: height and width of a patch in pixels.
        width: of the tower and of its output.
        patches: use the patch tokens as the context, instead of the embedding.
        vector: use the embedding as the vector, too.
    """

    def __init__(
        self,
        size: Pixels,
        patch: Pixels,
        width: Channels,
        depth: Depth,
        num_heads: Channels,
        dropout: Proportion,
        patches: bool = False,
        vector: bool = False,
        batch_key: str = "image",
    ) -> None:
        super().__init__(batch_key, dropout)
        if size % patch or width % num_heads:
            raise InvalidValue(
                f"an image encoder of size {size}, patch {patch}, width {width} and num_heads {num_heads}: "
                "size must be a multiple of patch, and width of num_heads"
            )
        self.size, self.width, self.patches, self.vector = size, width, patches, vector
        self.num_tokens = (size // patch) ** 2 if patches else 1
        self.tower = VisionTransformer(
            size, patch, width, depth, num_heads, mlp_ratio=4.0, output_dim=width, output_tokens=True
        )

    def forward(self, values: UInt8[Tensor, "b 3 h w"]) -> Conditioning:
        """Encode images in 0..255."""
        pooled, tokens = self.tower(self.preprocess(values.to(self.device)))
        context = tokens if self.patches else pooled[:, None]
        return Conditioning(context=context, vector=pooled if self.vector else None)

    def preprocess(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """Map images to [-1, 1] and resize them to the tower's size, without a crop."""
        x = to_float_image(images)
        if x.shape[-2:] == (self.size, self.size):
            return x
        return interpolate(x, (self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return zeros."""
        context = torch.zeros(n, self.num_tokens, self.width, device=self.device)
        vector = torch.zeros(n, self.width, device=self.device) if self.vector else None
        return Conditioning(context=context, vector=vector)
