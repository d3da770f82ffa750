"""Types that all layers share: tensors, batches, and the ranges of arguments that configs set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias, TypedDict

from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

Image: TypeAlias = Float[Tensor, "b c h w"]
"""Pixels in [-1, 1]."""

Latent: TypeAlias = Float[Tensor, "b z h w"]
"""Latents; for diffusion always normalised (mean 0, std 1 per channel)."""

Tokens: TypeAlias = Int64[Tensor, "b l"]
"""Token ids."""


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, in the type of an argument; `ldm.cli.config.ranges` checks them."""

    least: float
    most: float


@dataclass(frozen=True)
class Length:
    """The possible lengths of a list, in the type of an argument."""

    least: int
    most: int


PositiveInt: TypeAlias = Annotated[int, Range(1, 2**31 - 1)]
NonNegativeInt: TypeAlias = Annotated[int, Range(0, 2**31 - 1)]
Seed: TypeAlias = Annotated[int, Range(0, 2**32 - 1)]
"""The seeds that NumPy and Lightning take."""
Channels: TypeAlias = Annotated[int, Range(1, 2**16)]
"""Widths of layers; numbers of heads, labels, codes and tokens."""
Depth: TypeAlias = Annotated[int, Range(1, 256)]
"""Blocks or layers in a row."""
Multipliers: TypeAlias = Annotated[Sequence[Depth], Length(1, 12)]
"""Channel multipliers, one per level."""
Pixels: TypeAlias = Annotated[int, Range(1, 2**14)]
"""Heights, widths and factors of them."""
Timesteps: TypeAlias = Annotated[int, Range(1, 10**4)]
"""T of a noise schedule."""
Shift: TypeAlias = Annotated[float, Range(0.01, 100)]
"""A factor of sigma/alpha."""
Rho: TypeAlias = Annotated[float, Range(1, 100)]
"""The exponent of Karras et al. 2022, eq. 5."""
Workers: TypeAlias = Annotated[int, Range(0, 1024)]
"""Processes that load data; 0 loads in the main process."""
PositiveFloat: TypeAlias = Annotated[float, Range(1e-8, 1e6)]
NonNegativeFloat: TypeAlias = Annotated[float, Range(0, 1e6)]
FiniteFloat: TypeAlias = Annotated[float, Range(-1e6, 1e6)]
Proportion: TypeAlias = Annotated[float, Range(0, 1)]
"""Probabilities and fractions."""


class Batch(TypedDict, total=False):
    """A rank's share of a global batch, as data loaders yield it, with only the keys that were configured.

    Images and maps of a sample have the same crop and flip; c is `data.channels`. The table in
    docs/guide/data.md lists the source of each key and the conditioners that need it.
    """

    position: Int64[Tensor, " b"]
    """In the endless stream of samples, epoch * N + index; the key of all the sample's random numbers."""
    key: list[str]
    """The sample's name in its shard."""
    image: UInt8[Tensor, "b c h w"]
    """RGB, greyscale or multi-channel, 0..255; the stage maps it to [-1, 1] on the device."""
    moments: Float[Tensor, "b two_z h w"]
    """Cached posterior of the first stage: mean, then standard deviation, not normalised."""
    caption: list[str]
    text: Float[Tensor, "b l d"]
    """Cached embeddings of the caption from a frozen text encoder."""
    text_mask: Float[Tensor, "b l"]
    """1 for the embeddings of tokens, 0 for those of padding."""
    ids: Tokens
    """The caption's token ids, if the data workers tokenize."""
    label: Int64[Tensor, " b"]
    """Class label, 0..num_classes-1."""
    segmentation: UInt8[Tensor, "b h w"]
    """Label of each pixel; 255: unlabelled."""
    boxes: Float[Tensor, "b n 5"]
    """(label, left, top, right, bottom), the coordinates in [0, 1] of the crop; label -1: padding."""
    depth: Float[Tensor, "b 1 h w"]
    """[-1, 1], near is 1."""
    edges: Float[Tensor, "b 1 h w"]
    """[-1, 1]; 1 is a full step from black to white."""
    mask: UInt8[Tensor, "b 1 h w"]
    """255 where the image is to be generated, 0 where it is kept."""
    masked: Float[Tensor, "b c h w"]
    """The image in [-1, 1], with a constant where the mask is 255."""
    small: UInt8[Tensor, "b c h2 w2"]
    """The image downsampled, possibly degraded, 0..255."""
    noise_level: Int64[Tensor, " b"]
    """Timestep of the noise to add to `small`; 0: none."""
    noise: Float[Tensor, "b c h2 w2"]
    """N(0, I), for `small`."""
    sizes: Float[Tensor, "b 6"]
    """In pixels: height and width as stored, the crop's top and left, target height and width."""
    aesthetic: Float[Tensor, "b 1"]
    """Aesthetic score of the image, usually 1..10."""


@dataclass(kw_only=True)
class Conditioning:
    """Conditions by where they enter the denoiser; absent ones are None."""

    context: Float[Tensor, "b l d"] | None = None
    """Keys and values of cross-attention."""
    context_mask: Bool[Tensor, "b l"] | None = None
    """True for the tokens that may be attended to, at least one per sample; None for all."""
    vector: Float[Tensor, "b e"] | None = None
    """Added to the time embedding."""
    concat: Float[Tensor, "b k h w"] | None = None
    """Concatenated to z_t along channels."""
