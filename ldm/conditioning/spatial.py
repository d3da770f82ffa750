"""Maps and images as conditions: channels beside z_t, tokens for cross-attention, or both.

Rombach et al. (2022), figure 3: the switch between concatenation and cross-attention is which of `rescaler`
and `tokens` a conditioner has. The null of all of them is zeros in every slot, but a mask's.
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
from ldm.typing import Conditioning


class MapTokens(nn.Module):
    """c_i = W patch_i + p_i: one token a patch of the map (Dosovitskiy et al. 2021, eq. 1).

    Positions are learned for a square of `side` patches, and interpolated for other sizes.

    Args:
        in_channels: of the map.
        width: of a token.
        patch: pixels of the map, a side.
    """

    def __init__(self, in_channels: int, width: int, patch: int, side: int) -> None:
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
        """How many tokens a map of a size makes; ValueError if the patches do not fill it."""
        if height % self.patch or width % self.patch:
            raise InvalidValue(f"a map of {height}x{width} does not divide into patches of {self.patch}")
        return (height // self.patch) * (width // self.patch)


class SpatialConditioner(Conditioner):
    """What all maps and images have in common.

    Args:
        factor: pixels of the map to a place of the latent, a side.
        rescaler: makes the channels beside z_t; None for none.
        tokens: makes the tokens; None for none.
    """

    def __init__(
        self,
        key: str,
        dropout: float,
        factor: int,
        rescaler: Rescaler | None = None,
        tokens: MapTokens | None = None,
    ) -> None:
        super().__init__(key, dropout)
        if rescaler is None and tokens is None:
            raise InvalidValue(f"the condition of {key} needs a rescaler, tokens, or both")
        self.factor, self.rescaler, self.tokens = factor, rescaler, tokens

    @abstractmethod
    def channels(self, values: Any) -> Float[Tensor, "b c H W"]:
        """The map as numbers, on this conditioner's device."""

    def forward(self, values: Any) -> Conditioning:
        """The condition of each map."""
        return self.told(self.channels(values))

    def told(self, x: Float[Tensor, "b c H W"]) -> Conditioning:
        """The channels and tokens of a map."""
        size = self.shrunk(x.shape[-2:])
        return Conditioning(
            context=None if self.tokens is None else self.tokens(x),
            concat=None if self.rescaler is None else self.rescaler(x, size),
        )

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Zeros."""
        height, width = self.needed(size)
        context = concat = None
        if self.tokens is not None:
            count = self.tokens.count(height * self.factor, width * self.factor)
            context = torch.zeros(n, count, self.tokens.width, device=self.device)
        if self.rescaler is not None:
            concat = torch.zeros(n, self.rescaler.out_channels, height, width, device=self.device)
        return Conditioning(context=context, concat=concat)

    def latent_size(self, batch: Mapping[str, Any]) -> Size | None:
        """The map's size divided by `factor`."""
        return self.shrunk(batch[self.key].shape[-2:])

    def shrunk(self, size: tuple[int, ...]) -> Size:
        """A map's size in places of the latent. UserError if it does not divide."""
        height, width = size
        if height % self.factor or width % self.factor:
            raise UserError(
                f"the {self.key} of {height}x{width} does not divide by {self.factor}, pixels to a place of "
                "the latent: give another size"
            )
        return height // self.factor, width // self.factor

    def needed(self, size: Size | None) -> Size:
        """The size, which a map's null cannot do without."""
        if size is None:
            raise InvalidValue(f"the null of {self.key} needs the latent's size")
        return size


class SemanticMap(SpatialConditioner):
    """The label of each pixel, as one channel a label (Rombach et al. 2022, section 4.3.2).

    A label from `num_labels` on, as the customary 255, is none: its pixel is zero in every channel.
    """

    def __init__(
        self,
        num_labels: int,
        dropout: float,
        factor: int,
        rescaler: Rescaler | None = None,
        tokens: MapTokens | None = None,
        key: str = "segmentation",
    ) -> None:
        super().__init__(key, dropout, factor, rescaler, tokens)
        self.num_labels = num_labels

    def channels(self, values: UInt8[Tensor, "b H W"]) -> Float[Tensor, "b k H W"]:
        labels = torch.arange(self.num_labels, device=self.device)
        return (values.to(self.device)[:, None] == labels[:, None, None]).float()


class ScalarMap(SpatialConditioner):
    """A map of numbers in [-1, 1]: depth (Stable Diffusion 2), edges."""

    def channels(self, values: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        return values.to(self.device)


class Mask(SpatialConditioner):
    """Where the image is to be drawn anew: 1 there, `background` elsewhere. The null is 1 everywhere.

    Published: the nearest pixel of each place, with -1 (latent diffusion, behind the masked image) or 0
    (Stable Diffusion, before it).

    Args:
        low: -1 or 0, of what stays.
    """

    def __init__(
        self, background: float, dropout: float, factor: int, rescaler: Rescaler, key: str = "mask"
    ) -> None:
        super().__init__(key, dropout, factor, rescaler)
        self.background = background

    def channels(self, values: UInt8[Tensor, "b 1 H W"]) -> Float[Tensor, "b 1 H W"]:
        drawn = (values.to(self.device) > 127).float()
        return self.background + (1 - self.background) * drawn

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """All is to be drawn anew."""
        zeros = super().null(n, size).concat
        assert zeros is not None
        return Conditioning(concat=torch.ones_like(zeros))


class LatentImage(Conditioner):
    """A image's latent beside z_t: the masked image of inpainting, the image to be edited.

    Brooks et al. (2023), section 3.2, for the latter; the posterior's mean, normalised as z_0 is.

    Args:
        channels: of the latent.
        factor: the first stage's.
        key: a image in [-1, 1], or bytes.
    """

    through_first_stage = True

    def __init__(self, channels: int, dropout: float, factor: int, key: str = "masked") -> None:
        super().__init__(key, dropout)
        self.latent_channels, self.factor = channels, factor

    def read(self, batch: Mapping[str, Any], size: Size | None) -> Float[Tensor, "b c H W"]:
        """The image in [-1, 1]."""
        return pixels(batch[self.key].to(self.device))

    def forward(self, values: Float[Tensor, "b z h w"]) -> Conditioning:
        """The latent itself."""
        return Conditioning(concat=values)

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Zeros: the mean of all latents."""
        if size is None:
            raise InvalidValue(f"the null of {self.key} needs the latent's size")
        return Conditioning(concat=torch.zeros(n, self.latent_channels, *size, device=self.device))

    def latent_size(self, batch: Mapping[str, Any]) -> Size | None:
        """The image's size divided by the first stage's factor."""
        height, width = batch[self.key].shape[-2:]
        return height // self.factor, width // self.factor


def pixels(image: Tensor) -> Float[Tensor, "b c H W"]:
    """A image in [-1, 1], of bytes or as it is."""
    return image.float() / 127.5 - 1 if image.dtype == torch.uint8 else image
