"""Perceptual distances between images, from a frozen network or from local statistics."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, relu
from torchmetrics.functional.image import lpips as torchmetrics_lpips
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

from ldm import pretrained
from ldm.errors import InvalidValue, UserError
from ldm.networks.blocks import autocast_off
from ldm.typing import Image, Multipliers, NonNegativeInt, PositiveInt, Range, Seed

HEADS = Path(torchmetrics_lpips.__file__).with_name("lpips_models") / "vgg.pth"
"""LPIPS's linear heads, version 0.1, as shipped with torchmetrics."""


def to_rgb(x: Image, bands: Sequence[int] | None) -> Float[Tensor, "b 3 h w"]:
    """Return an RGB image: a grey channel repeated, or the three channels of `bands`."""
    channels = x.shape[1]
    if bands is not None:
        if len(bands) != 3 or not all(0 <= band < channels for band in bands):
            raise UserError(f"perceptual.bands={list(bands)}: name three of the channels 0..{channels - 1}")
        return x[:, list(bands)]
    if channels not in (1, 3):
        raise UserError(
            f"the perceptual network needs 3 channels, but the images have {channels}: name those to use "
            "as red, green and blue with perceptual.bands=[R,G,B], or choose perceptual=ms_ssim"
        )
    return x.expand(-1, 3, -1, -1)


class Perceptual(nn.Module, ABC):
    """A distance between images, one number per image pair, 0 for equal images. It has no trained weights."""

    @abstractmethod
    def forward(self, x_hat: Image, x: Image) -> Float[Tensor, " b"]:
        """Return the distance of each pair."""

    def check(self, channels: int) -> None:
        """Raise UserError if images with this number of channels are not supported."""
        return None

    def load_pretrained(self) -> None:
        """Load pretrained weights, if there are any; raise UserError if they are missing."""
        return None


class LPIPS(Perceptual):
    """d = sum_l mean_hw w_l . (f_l(x_hat) - f_l(x))^2, f_l VGG-16's normalised features (Zhang et al. 2018).

    The linear heads w_l are part of torchmetrics; `load_pretrained` finds or downloads VGG-16's weights.

    Args:
        bands: see `to_rgb`.
    """

    def __init__(self, bands: Sequence[NonNegativeInt] | None = None) -> None:
        super().__init__()
        self.bands = bands
        # Not torchmetrics' metric class: that rejects values below -1 and stores every score.
        self.network = torchmetrics_lpips._NoTrainLpips(pretrained=False, net="vgg", pnet_rand=True)
        pretrained.exclude_from_state_dict(self, "network")

    def forward(self, x_hat: Image, x: Image) -> Float[Tensor, " b"]:
        return self.network(to_rgb(x_hat, self.bands), to_rgb(x, self.bands))[:, 0, 0, 0]

    def check(self, channels: int) -> None:
        to_rgb(torch.empty(1, channels, 1, 1), self.bands)

    def load_pretrained(self) -> None:
        self.load_weights(
            vgg=torch.load(pretrained.find_or_download("vgg16"), map_location="cpu", weights_only=True),
            heads=torch.load(HEADS, map_location="cpu", weights_only=True),
        )

    def load_weights(self, vgg: dict[str, Tensor], heads: dict[str, Tensor]) -> None:
        """Load every tensor of the network, from torchvision's VGG-16 and LPIPS's heads."""
        state = dict(heads)
        # torchmetrics has each head under two names.
        state |= {key.replace("lin", "lins."): head for key, head in heads.items()}
        for name in self.network.net.state_dict():  # slice3.12.weight is features.12.weight
            state[f"net.{name}"] = vgg[f"features.{name.split('.', 1)[1]}"]
        self.network.load_state_dict(state)


class RandomVGG(Perceptual):
    """d = mean_l mean_hw |f_l(x_hat) - f_l(x)|^2, f_l of an untrained VGG, normalised (Liu et al. 2021).

    For machines without LPIPS's weights: the architecture alone helps (https://arxiv.org/abs/2103.10571).

    Args:
        channels: channels of each block; images are downsampled by 2 between blocks.
        convs: 3x3 convolutions of each block; VGG-16 is (64, 128, 256, 512, 512) and (2, 2, 3, 3, 3).
        seed: seed of the weights (He et al. 2015) and biases; a bias is the weight of a constant input of 1.
        bands: see `to_rgb`.
    """

    def __init__(
        self,
        channels: Multipliers,
        convs: Sequence[Annotated[int, Range(1, 16)]],
        seed: Seed = 0,
        bands: Sequence[NonNegativeInt] | None = None,
    ) -> None:
        super().__init__()
        self.bands = bands
        if len(channels) != len(convs):
            raise InvalidValue(
                f"channels has {len(channels)} blocks, but convs has {len(convs)}: give one number per block"
            )
        self.convs = tuple(convs)
        widths = [3] + [width for width, n in zip(channels, convs, strict=True) for _ in range(n)]
        generator = torch.Generator().manual_seed(seed)
        for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
            # On the CPU whatever the default device is: the seed replaces a weight file.
            weight = torch.randn(outputs, inputs, 3, 3, generator=generator, device="cpu")
            bias = torch.randn(outputs, generator=generator, device="cpu")
            self.register_buffer(f"weight_{i}", weight * (2 / (9 * inputs)) ** 0.5, persistent=False)
            # Without biases brightness would only scale the features, and _unit removes their length.
            self.register_buffer(f"bias_{i}", bias * (2 / inputs) ** 0.5, persistent=False)

    def forward(self, x_hat: Image, x: Image) -> Float[Tensor, " b"]:
        x_hat, x = to_rgb(x_hat, self.bands), to_rgb(x, self.bands)
        pairs = zip(self._features(x_hat), self._features(x), strict=True)
        distances = [(_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in pairs]
        return torch.stack(distances).mean(0)  # layers b -> b

    def check(self, channels: int) -> None:
        to_rgb(torch.empty(1, channels, 1, 1), self.bands)

    def _features(self, x: Image) -> list[Tensor]:
        features, i = [], 0
        for n in self.convs:
            x = x if i == 0 else max_pool2d(x, 2)
            for _ in range(n):
                weight, bias = self.get_buffer(f"weight_{i}"), self.get_buffer(f"bias_{i}")
                x = relu(conv2d(x, weight, bias, padding=1))
                i += 1
            features.append(x)
        return features


def _unit(f: Tensor) -> Tensor:
    """Scale features to length 1 at each position; torch's norm over this axis is 20 times slower."""
    f = f.float()  # in fp16 the sum of squares overflows
    return f * (f.square().sum(1, keepdim=True) + 1e-10).rsqrt()


class MultiScaleSSIM(Perceptual):
    """d = 1 - prod_s cs_s^{beta_s} * ssim_S^{beta_S}   (Wang et al. 2003), with an 11-pixel Gaussian window.

    Args:
        num_scales: number of resolutions, each half of the previous; uses the first num_scales of the 5
            published weights beta, rescaled to sum to 1. ValueError for too small images; 64 pixels allow 3.
    """

    BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

    def __init__(self, num_scales: PositiveInt = 3) -> None:
        super().__init__()
        if not 1 <= num_scales <= len(self.BETAS):
            raise InvalidValue(f"num_scales={num_scales}: use 1..{len(self.BETAS)}")
        betas = self.BETAS[:num_scales]
        self.betas = tuple(beta / sum(betas) for beta in betas)

    def forward(self, x_hat: Image, x: Image) -> Float[Tensor, " b"]:
        height, width = x.shape[2:]
        min_size = 11 * max(1, len(self.betas) - 1) ** 2  # torchmetrics' bound for its 11-pixel window
        if min(height, width) < min_size:
            raise InvalidValue(
                f"{len(self.betas)} scales of MS-SSIM need {min_size} pixels per side, got {height}x{width}"
            )
        with autocast_off(x):  # variances are small differences of squares
            a, b = (x_hat.float() + 1) / 2, (x.float() + 1) / 2
            similarity = ms_ssim(a, b, reduction="none", data_range=1.0, betas=self.betas, normalize="relu")
        return 1 - similarity
