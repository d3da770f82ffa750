"""Shared by all denoisers f_θ(z_t, t, c): embeddings of time and vector, and checks of the inputs."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.errors import InvalidValue
from ldm.typing import Conditioning


def sinusoidal_embedding(t: Float[Tensor, " b"], channels: int) -> Float[Tensor, "b e"]:
    """[cos ω_i t, sin ω_i t], ω_i = 10000^(-2i/channels), in fp32 (Vaswani et al. 2017, section 3.5)."""
    half = channels // 2
    omega = torch.exp(-math.log(10000) / half * torch.arange(half, device=t.device))
    angles = t.float()[:, None] * omega
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class EmbedMLP(nn.Module):
    """W_out silu(W_in v): embeds the sinusoids of the time, or the vector."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(in_channels, channels)
        self.linear_out = nn.Linear(channels, channels)

    def forward(self, v: Float[Tensor, "b v"]) -> Float[Tensor, "b e"]:
        return self.linear_out(F.silu(self.linear_in(v)))


class LabelEmbedding(nn.Module):
    """A learned embedding of labels 0..n-1: noise levels of the ×4 upscaler, classes of a DiT."""

    def __init__(self, num_labels: int, channels: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_labels, channels)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, label: Float[Tensor, "b 1"]) -> Float[Tensor, "b e"]:
        return self.table(label[:, 0].long())


def build_vector_embedding(
    vector_channels: int | None, num_labels: int | None, channels: int
) -> nn.Module | None:
    """Return the embedding of cond.vector, or None without one; raise ValueError if both kinds are set."""
    if vector_channels is not None and num_labels is not None:
        raise InvalidValue(
            f"vector_channels={vector_channels} and num_labels={num_labels} are both set: set one to null"
        )
    if num_labels is not None:
        return LabelEmbedding(num_labels, channels)
    return None if vector_channels is None else EmbedMLP(vector_channels, channels)


class Denoiser(nn.Module):
    """f_θ(z_t, t, c): a network that predicts y from a noisy latent, a time and a condition.

    Args:
        in_channels: channels of z_t and cond.concat together.
        context_channels: channels of cond.context; None for no cross-attention.
        vector_channels: channels of cond.vector; None for no vector.
        num_labels: if set, cond.vector is one integer label per sample, in 0..num_labels-1.
        downsampling: height and width of a latent must be multiples of this.

    Attributes:
        title: name of the network in error messages.
    """

    title = "the denoiser"

    def __init__(
        self,
        in_channels: int,
        context_channels: int | None,
        vector_channels: int | None,
        num_labels: int | None,
        downsampling: int,
    ) -> None:
        super().__init__()
        self.in_channels, self.downsampling = in_channels, downsampling
        self.context_channels = context_channels
        self.vector_channels = vector_channels if num_labels is None else 1

    def concat_inputs(self, z_t: Float[Tensor, "b c h w"], cond: Conditioning) -> Float[Tensor, "b in h w"]:
        """Concatenate z_t and cond.concat along channels, after `check`."""
        self.check(z_t, cond)
        return z_t if cond.concat is None else torch.cat([z_t, cond.concat], dim=1)

    def check(self, z_t: Float[Tensor, "b c h w"], cond: Conditioning) -> None:
        """Raise ValueError for sizes, channels or conditions that this network does not support."""
        size = z_t.shape[-2:]
        if any(length % self.downsampling for length in size):
            raise InvalidValue(
                f"latents of {tuple(size)}: {self.title} needs height and width to be multiples of "
                f"{self.downsampling}"
            )
        if cond.concat is not None and cond.concat.shape[-2:] != size:
            raise InvalidValue(
                f"cond.concat of {tuple(cond.concat.shape[-2:])} needs the size of the latents, {tuple(size)}"
            )
        channels = z_t.shape[1] + (0 if cond.concat is None else cond.concat.shape[1])
        if channels != self.in_channels:
            raise InvalidValue(
                f"z_t and cond.concat have {channels} channels, but {self.title} takes {self.in_channels}"
            )
        if cond.context_mask is not None:
            assert cond.context is not None and cond.context_mask.shape == cond.context.shape[:2]
        slots = (
            ("context", cond.context, self.context_channels),
            ("vector", cond.vector, self.vector_channels),
        )
        for name, value, expected in slots:
            actual = None if value is None else value.shape[-1]
            if actual != expected:
                raise InvalidValue(f"cond.{name} has {actual} channels, but {self.title} takes {expected}")
