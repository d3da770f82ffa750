"""The discriminator of stage 1's adversarial loss."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from ldm.errors import InvalidValue
from ldm.networks.blocks import GroupNorm
from ldm.typing import Channels, Depth, Image


class PatchDiscriminator(nn.Module):
    """One logit per overlapping patch: PatchGAN (Isola et al. 2017, section 3.2.2).

    Args:
        channels: of the first layer; doubled by every later one, up to eight times.
        num_layers: number of stride-2 layers; the receptive field is 70×70 pixels for 3, 34×34 for 2.
        norm: makes a norm of the given width. The published `torch.nn.BatchNorm2d` has statistics local to a
            rank; a group norm treats every image separately.
    """

    def __init__(
        self,
        in_channels: Channels = 3,
        channels: Channels = 64,
        num_layers: Depth = 3,
        norm: Callable[[int], nn.Module] = GroupNorm,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels, 4, stride=2, padding=1)
        widths = [channels * min(2**i, 8) for i in range(num_layers + 1)]
        self.blocks = nn.ModuleList()
        for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            stride = 2 if i < num_layers - 1 else 1
            conv = nn.Conv2d(a, b, 4, stride, padding=1, bias=False)
            self.blocks.append(nn.Sequential(conv, norm(b)))
        self.conv_out = nn.Conv2d(widths[-1], 1, 4, padding=1)
        self.activation = nn.LeakyReLU(0.2)
        self.min_size = 2**num_layers * 3
        self.apply(initialize)

    def forward(self, x: Image) -> Float[Tensor, "b 1 h2 w2"]:
        """Return logits, positive for real; raise ValueError for images too small for one patch."""
        if min(x.shape[-2:]) < self.min_size:
            raise InvalidValue(
                f"the discriminator needs {self.min_size} pixels per side, not {x.shape[-2]}x{x.shape[-1]}"
            )
        h = self.activation(self.conv_in(x))
        for block in self.blocks:
            h = self.activation(block(h))
        return self.conv_out(h)


def initialize(module: nn.Module) -> None:
    """Initialise convolutions from N(0, 0.02²) and norms from N(1, 0.02²), as published."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, (nn.GroupNorm, nn.BatchNorm2d)):
        nn.init.normal_(module.weight, 1.0, 0.02)
