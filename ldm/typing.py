"""The shapes and records that every layer shares."""

from dataclasses import dataclass
from typing import TypeAlias, TypedDict

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

Image: TypeAlias = Float[Tensor, "b c h w"]
"""Pixels in [-1, 1]."""

Latent: TypeAlias = Float[Tensor, "b z h w"]
"""Latents; normalised (mean 0, std 1 a channel) wherever diffusion sees them."""

Tokens: TypeAlias = Int64[Tensor, "b l"]
"""Token ids."""


class Batch(TypedDict, total=False):
    """What a loader yields: one global batch's share of one rank; docs/data.md says who makes each entry."""

    position: Int64[Tensor, " b"]
    """Place in the endless stream, epoch * N + index: the key of all the sample's randomness."""
    key: list[str]
    """The sample's name in its shard."""
    image: UInt8[Tensor, "b 3 h w"]
    """RGB as stored, 0..255; the stage maps it to [-1, 1] on the device."""
    moments: Float[Tensor, "b two_z h w"]
    """Cached posterior of the first stage: mean then standard deviation, raw (not normalised)."""
    caption: list[str]
    label: Int64[Tensor, " b"]
    """Number of the class."""
    segmentation: UInt8[Tensor, "b h w"]
    """Label of each pixel of `image`, nearest."""
    mask: UInt8[Tensor, "b 1 h w"]
    """255 where the picture is to be drawn anew, 0 where it stays."""
    masked: Float[Tensor, "b 3 h w"]
    """The picture in [-1, 1], with one value under the mask: 0 (grey) by Stable Diffusion, -1 by LDM."""
    small: UInt8[Tensor, "b 3 h_small w_small"]
    """The picture at low resolution, 0..255."""
    noise_level: Int64[Tensor, " b"]
    """t of the noise that is added to the low-resolution picture; 0 is none."""
    noise: Float[Tensor, "b 3 h_small w_small"]
    """That noise, N(0, I)."""
    boxes: Float[Tensor, "b n 5"]
    """(label, left, top, right, bottom), in [0, 1] of the crop; label -1 where there is no box."""
    depth: Float[Tensor, "b 1 h w"]
    """Depth in [-1, 1], the nearest +1."""
    edges: Float[Tensor, "b 1 h w"]
    """Strength of the edges of `image` in [-1, 1]; -1 is none."""
    sizes: Float[Tensor, "b 6"]
    """Original height and width, top and left of the crop, target height and width, in pixels."""
    aesthetic: Float[Tensor, "b 1"]
    """The aesthetic score as the shard's json has it."""


@dataclass
class Conditioning:
    """Where a condition enters the denoiser; an absent slot is None."""

    context: Float[Tensor, "b l d"] | None = None
    """Keys and values of cross-attention."""
    vector: Float[Tensor, "b e"] | None = None
    """Added to the time embedding."""
    concat: Float[Tensor, "b k h w"] | None = None
    """Concatenated to z_t along channels."""
