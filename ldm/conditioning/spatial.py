"""Maps and images as conditions: channels concatenated to z_t, tokens for cross-attention, or both.

Rombach et al. (2022), figure 3: a conditioner with a `rescaler` concatenates, one with `tokens` uses
cross-attention. The null is zeros in every slot, except for `Mask`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ldm.conditioning.base import Conditioner, Size
from ldm.conditioning.rescalers import Rescaler
from ldm.errors import InvalidValue, UserError
from ldm.typing import Channels, Conditioning, FiniteFloat, Pixels, Proportion


class MapTokens(nn.Module):
    """c_i = W patch_i + p_i: one token per patch of the map (Dosovitskiy et al. 2021, eq. 1).

    The position embeddings are learned for `side` x `side` patches, and interpolated for other sizes.

    Args:
        in_channels: of the map.
        width: of a token.
        patch: height and width of a patch in pixels.
    """

    def __init__(self, in_channels: Channels, width: Channels, patch: Pixels, side: Pixels) -> None:
        super().__init__()
        self.width, self.patch = width, patch
        self.linear = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(1, width, side, side))
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b l d"]:
        self.count(*x.shape[-2:])
        h = self.linear(x)
        p: Tensor = self.positions
        if h.shape[-2:] != p.shape[-2:]:
            p = F.interpolate(p, h.shape[-2:], mode="bicubic")
        return rearrange(h + p, "b d h w -> b (h w) d")

    def count(self, height: int, width: int) -> int:
        """Return the number of tokens for a map's size; InvalidValue if the patches do not fill it."""
        if height % self.patch or width % self.patch:
            raise InvalidValue(f"a map of {height}x{width} does not divide into patches of {self.patch}")
        return (height // self.patch) * (width // self.patch)


class SpatialConditioner(Conditioner):
    """Base class of maps and images.

    Args:
        factor: width in pixels of the map's cell at one latent position.
        rescaler: makes the channels of `concat`; None for none.
        tokens: makes the tokens of `context`; None for none.
    """

    def __init__(
        self,
        batch_key: str,
        dropout: Proportion,
        factor: Pixels,
        rescaler: Rescaler | None = None,
        tokens: MapTokens | None = None,
    ) -> None:
        super().__init__(batch_key, dropout)
        if rescaler is None and tokens is None:
            raise InvalidValue(f"the conditioner of {batch_key} needs a rescaler, tokens, or both")
        self.factor, self.rescaler, self.tokens = factor, rescaler, tokens

    @abstractmethod
    def channels(self, values: Any) -> Float[Tensor, "b c H W"]:
        """Return the map as float channels, on this conditioner's device."""

    def forward(self, values: Any) -> Conditioning:
        """Encode maps."""
        return self.encode_map(self.channels(values))

    def encode_map(self, x: Float[Tensor, "b c H W"]) -> Conditioning:
        """Apply the rescaler and the tokens to float channels."""
        size = self.downsampled_size(x.shape[-2:])
        return Conditioning(
            context=None if self.tokens is None else self.tokens(x),
            concat=None if self.rescaler is None else self.rescaler(x, size),
        )

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return zeros."""
        height, width = require_size(size, self.batch_key)
        context = concat = None
        if self.tokens is not None:
            count = self.tokens.count(height * self.factor, width * self.factor)
            context = torch.zeros(n, count, self.tokens.width, device=self.device)
        if self.rescaler is not None:
            concat = torch.zeros(n, self.rescaler.out_channels, height, width, device=self.device)
        return Conditioning(context=context, concat=concat)

    def latent_size(self, batch: Mapping[str, Any]) -> Size | None:
        """Return the map's size divided by `factor`."""
        return self.downsampled_size(batch[self.batch_key].shape[-2:])

    def downsampled_size(self, size: tuple[int, ...]) -> Size:
        """Return a map's size divided by `factor`. UserError if it is not divisible."""
        height, width = size
        if height % self.factor or width % self.factor:
            raise UserError(
                f"{self.batch_key} is {height}x{width}, which is not divisible by factor {self.factor}, the "
                "pixels per latent position: use another size"
            )
        return height // self.factor, width // self.factor


class SemanticMap(SpatialConditioner):
    """The label of each pixel, one-hot: a channel per label (Rombach et al. 2022, section 4.3.2).

    Labels from `num_labels` on, such as the usual 255, mean "unlabelled": zero in every channel.
    """

    def __init__(
        self,
        num_labels: Channels,
        dropout: Proportion,
        factor: Pixels,
        rescaler: Rescaler | None = None,
        tokens: MapTokens | None = None,
        batch_key: str = "segmentation",
    ) -> None:
        super().__init__(batch_key, dropout, factor, rescaler, tokens)
        self.num_labels = num_labels

    def channels(self, values: UInt8[Tensor, "b H W"]) -> Float[Tensor, "b k H W"]:
        labels = torch.arange(self.num_labels, device=self.device)
        return (values.to(self.device)[:, None] == labels[:, None, None]).float()


class ScalarMap(SpatialConditioner):
    """A map of numbers in [-1, 1]: depth (Stable Diffusion 2), edges."""

    def channels(self, values: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        return values.to(self.device)


class Mask(SpatialConditioner):
    """The mask of inpainting: 1 where the image is generated, `background` where it is kept.

    The null is 1 everywhere. Published: nearest-neighbour interpolation, with -1 after the masked image's
    latent (latent diffusion) or 0 before it (Stable Diffusion).

    Args:
        background: -1 or 0, the value where the image is kept.
    """

    def __init__(
        self,
        background: FiniteFloat,
        dropout: Proportion,
        factor: Pixels,
        rescaler: Rescaler,
        batch_key: str = "mask",
    ) -> None:
        super().__init__(batch_key, dropout, factor, rescaler)
        self.background = background

    def channels(self, values: UInt8[Tensor, "b 1 H W"]) -> Float[Tensor, "b 1 H W"]:
        is_masked = (values.to(self.device) > 127).float()
        return self.background + (1 - self.background) * is_masked

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return ones: the whole image is masked."""
        zeros = super().null(n, size).concat
        assert zeros is not None
        return Conditioning(concat=torch.ones_like(zeros))


class LatentImage(Conditioner):
    """An image's latent concatenated to z_t: the masked image of inpainting, or the image to be edited.

    Brooks et al. (2023), section 3.2, for the latter. The mean of the posterior, normalised as z_0 is.

    Args:
        channels: of the latent.
        factor: the first stage's downsampling factor.
        batch_key: of an image in [-1, 1], or uint8.
    """

    needs_first_stage = True

    def __init__(
        self, channels: Channels, dropout: Proportion, factor: Pixels, batch_key: str = "masked"
    ) -> None:
        super().__init__(batch_key, dropout)
        self.latent_channels, self.factor = channels, factor

    def read(self, batch: Mapping[str, Any], size: Size | None) -> Float[Tensor, "b c H W"]:
        """Return the image in [-1, 1]."""
        return to_float_image(batch[self.batch_key].to(self.device))

    def forward(self, values: Float[Tensor, "b z h w"]) -> Conditioning:
        """Return the latent as `concat`."""
        return Conditioning(concat=values)

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return zeros, the mean of all latents."""
        latent_size = require_size(size, self.batch_key)
        return Conditioning(concat=torch.zeros(n, self.latent_channels, *latent_size, device=self.device))

    def latent_size(self, batch: Mapping[str, Any]) -> Size | None:
        """Return the image's size divided by the first stage's factor."""
        height, width = batch[self.batch_key].shape[-2:]
        return height // self.factor, width // self.factor


def require_size(size: Size | None, batch_key: str) -> Size:
    """Return the size, which the null of a map or image needs; InvalidValue if it is None."""
    if size is None:
        raise InvalidValue(f"the null of {batch_key} needs the latent's size")
    return size


def to_float_image(image: Tensor) -> Float[Tensor, "b c H W"]:
    """Map a uint8 image to [-1, 1]; return a float image unchanged."""
    return image.float() / 127.5 - 1 if image.dtype == torch.uint8 else image
