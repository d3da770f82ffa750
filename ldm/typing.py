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
    """What a loader yields: one global batch's share of one rank."""

    position: Int64[Tensor, " b"]
    """Place in the endless stream, epoch * N + index: the key of all the sample's randomness."""
    key: list[str]
    """The sample's name in its shard."""
    image: UInt8[Tensor, "b 3 h w"]
    """RGB as stored, 0..255; the stage maps it to [-1, 1] on the device."""
    moments: Float[Tensor, "b two_z h w"]
    """Cached posterior of the first stage: mean then standard deviation, raw (not normalised)."""
    caption: list[str]


@dataclass
class Conditioning:
    """Where a condition enters the denoiser; an absent slot is None."""

    context: Float[Tensor, "b l d"] | None = None
    """Keys and values of cross-attention."""
    vector: Float[Tensor, "b e"] | None = None
    """Added to the time embedding."""
    concat: Float[Tensor, "b k h w"] | None = None
    """Concatenated to z_t along channels."""
