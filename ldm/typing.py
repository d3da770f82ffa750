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
    """What a loader yields: one global batch's share of one rank. A batch holds what was asked for.

    Images and maps of a sample share one crop and one flip; c is `data.channels`. A table in docs/data.md
    says where each is read from, and by which condition.
    """

    position: Int64[Tensor, " b"]
    """Place in the endless stream, epoch * N + index: the key of all the sample's randomness."""
    key: list[str]
    """The sample's name in its shard."""
    image: UInt8[Tensor, "b c h w"]
    """RGB, luma, or bands as stored, 0..255; the stage maps it to [-1, 1] on the device."""
    moments: Float[Tensor, "b two_z h w"]
    """Cached posterior of the first stage: mean then standard deviation, raw (not normalised)."""
    caption: list[str]
    text: Float[Tensor, "b l d"]
    """Cached states of the caption, of a frozen text encoder."""
    ids: Tokens
    """The caption's token ids, where workers tokenize it."""
    label: Int64[Tensor, " b"]
    """Number of the class, 0..num_classes-1."""
    segmentation: UInt8[Tensor, "b h w"]
    """Label of each pixel; 255 is none."""
    boxes: Float[Tensor, "b n 5"]
    """(label, left, top, right, bottom) in [0, 1] of the crop; label -1 where there is no box."""
    depth: Float[Tensor, "b 1 h w"]
    """[-1, 1], 1 is near."""
    edges: Float[Tensor, "b 1 h w"]
    """[-1, 1], 1 is a full step from black to white."""
    mask: UInt8[Tensor, "b 1 h w"]
    """255 where the image is to be drawn anew, 0 where it stays."""
    masked: Float[Tensor, "b c h w"]
    """The image in [-1, 1], one stated number where the mask is."""
    small: UInt8[Tensor, "b c h2 w2"]
    """The image at a fraction of its size, perhaps spoilt, 0..255."""
    noise_level: Int64[Tensor, " b"]
    """Time of the noise that `small` gets, 0 for none."""
    noise: Float[Tensor, "b c h2 w2"]
    """N(0, I), for `small`."""
    sizes: Float[Tensor, "b 6"]
    """In pixels: height and width as stored, the crop's top and left, height and width drawn."""
    aesthetic: Float[Tensor, "b 1"]
    """A score of the image, commonly 1..10."""


@dataclass
class Conditioning:
    """Where a condition enters the denoiser; an absent slot is None."""

    context: Float[Tensor, "b l d"] | None = None
    """Keys and values of cross-attention."""
    vector: Float[Tensor, "b e"] | None = None
    """Added to the time embedding."""
    concat: Float[Tensor, "b k h w"] | None = None
    """Concatenated to z_t along channels."""
