"""Building blocks: norms, residual blocks, resampling, activation checkpointing."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def num_groups(channels: int) -> int:
    """Return the largest divisor of `channels` up to 32: the published 32 groups where they divide."""
    return max(g for g in range(1, 33) if channels % g == 0)


def autocast_off(x: Tensor) -> AbstractContextManager:
    """Return a context that disables autocast on the device of x; the meta device has no autocast."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def autocast_off_if_fp16(x: Tensor) -> AbstractContextManager:
    """Return a context that disables autocast to fp16 on the device of x, and leaves autocast to bf16."""
    kind = x.device.type
    available = torch.amp.is_autocast_available(kind)
    return autocast_off(x) if available and torch.get_autocast_dtype(kind) == torch.float16 else nullcontext()


class GroupNorm(nn.GroupNorm):
    """Group norm in the dtype of its input, with `num_groups(channels)` groups (Wu & He 2018).

    Autocast would make the output fp32 on CUDA, and the next convolution would cast it back; the statistics
    are accumulated in fp32 either way.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(num_groups(channels), channels, eps)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
        with autocast_off(x):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)


class LayerNorm(nn.LayerNorm):
    """Layer norm over channels in the dtype of its input, as in `GroupNorm` (Ba et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        with autocast_off(x):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def zero_init(module: nn.Module) -> nn.Module:
    """Zero every parameter, so that the residual branch starts as the identity, and return the module."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 3×3 convolution that preserves height and width."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1×1 convolution on x if the channels change."""

    def __init__(self, in_channels: int, out_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels, eps)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.norm2 = GroupNorm(out_channels, eps)
        self.conv2 = conv3x3(out_channels, out_channels)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class TimeResidualBlock(ResidualBlock):
    """x + conv(drop(silu(norm(h + W e)))), h = conv(silu(norm(x))), e the time embedding (Ho et al. 2020).

    The last convolution is initialised to zero.

    Args:
        scale_shift_norm: (1 + a) norm(h) + b, [a, b] = W e, instead (Dhariwal & Nichol 2021, eq. 3).
        resample: up- or downsampling of x, and of silu(norm(x)) before the first convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        dropout: float,
        scale_shift_norm: bool,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, eps=1e-5)
        self.resample = nn.Identity() if resample is None else resample
        self.scale_shift_norm = scale_shift_norm
        self.time = nn.Linear(time_channels, out_channels * (2 if scale_shift_norm else 1))
        self.dropout = nn.Dropout(dropout)
        zero_init(self.conv2)

    def forward(self, x: Float[Tensor, "b c h w"], e: Float[Tensor, "b t"]) -> Float[Tensor, "b d h2 w2"]:
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        time = self.time(e)[:, :, None, None]
        if self.scale_shift_norm:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        return self.shortcut(self.resample(x)) + self.conv2(self.dropout(F.silu(h)))


class Downsample(nn.Module):
    """A stride-2 convolution padded right and bottom only, as in the published autoencoders."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a convolution (Odena et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Checkpointed(nn.Module):
    """A block with optional activation checkpointing: activations are recomputed in the backward pass.

    Chen et al. (2016), https://arxiv.org/abs/1604.06174.

    Attributes:
        compute: the block's forward pass; `forward` takes the same inputs.
    """

    compute: Callable[..., Tensor]

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute

    def forward(self, *inputs: Tensor | None) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.compute, *inputs, use_reentrant=False)
        return self.compute(*inputs)
