"""Tiled results equal untiled ones for every kind of first stage."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ldm.networks import tiling
from ldm.networks.attention import AttentionBlock
from ldm.networks.autoencoder import Autoencoder, Decoder, DecoderBase, Encoder, EncoderBase
from ldm.networks.bottleneck import Bottleneck, KLBottleneck, NoBottleneck
from ldm.networks.dc_ae import DeepDecoder, DeepEncoder
from ldm.networks.identity_autoencoder import IdentityDecoder, IdentityEncoder
from ldm.networks.patch_autoencoder import PatchDecoder, PatchEncoder
from ldm.networks.vector_quantizer import VQBottleneck


def convolutional(bottleneck: Bottleneck, levels: tuple[int, ...] = (), middle: bool = True) -> Autoencoder:
    encoder = Encoder(3, 16, (1, 2, 2), 1, levels, middle, out_channels=bottleneck.in_channels)
    return Autoencoder(encoder, Decoder(3, 16, (1, 2, 2), 1, levels, middle, in_channels=4), bottleneck)


def deep(bottleneck: Bottleneck, levels: tuple[int, ...] = (), patch: int = 1) -> Autoencoder:
    mult, blocks = ((1, 2, 4), (0, 1, 1)) if patch == 1 else ((1, 2), (1, 1))
    encoder = DeepEncoder(3, 8, mult, blocks, levels, bottleneck.in_channels, patch)
    return Autoencoder(encoder, DeepDecoder(3, 8, mult, blocks, levels, 4, patch), bottleneck)


def patches(bottleneck: Bottleneck, attention: bool) -> Autoencoder:
    encoder = PatchEncoder(3, 4, 16, 2, attention, bottleneck.in_channels)
    return Autoencoder(encoder, PatchDecoder(3, 4, 16, 2, attention, 4, 5), bottleneck)


KINDS: dict[str, Callable[[], Autoencoder]] = {
    "KL": lambda: convolutional(KLBottleneck(4)),
    "KL without attention": lambda: convolutional(KLBottleneck(4), middle=False),
    "VQ with attention in a level": lambda: convolutional(VQBottleneck(4, 30), (2,)),
    "VQ without attention": lambda: convolutional(VQBottleneck(4, 30), middle=False),
    "deep": lambda: deep(NoBottleneck(4)),
    "deep with attention": lambda: deep(KLBottleneck(4), (1, 2)),
    "deep with VQ": lambda: deep(VQBottleneck(4, 30)),
    "deep on patches": lambda: deep(NoBottleneck(4), patch=2),
    "patches": lambda: patches(KLBottleneck(4), attention=False),
    "patches with attention": lambda: patches(KLBottleneck(4), attention=True),
    "patches with VQ": lambda: patches(VQBottleneck(4, 30), attention=False),
    "pixels": lambda: Autoencoder(IdentityEncoder(), IdentityDecoder(), NoBottleneck(3)),
}


def build(kind: str = "KL") -> Autoencoder:
    """Return an autoencoder with random weights, also in norms, and latent statistics other than 0 and 1."""
    torch.manual_seed(0)
    autoencoder = KINDS[kind]()
    for p in autoencoder.parameters():
        p.data += 0.1 * torch.randn_like(p)
    autoencoder.set_latent_statistics(0.3, 2.0)
    return autoencoder


@pytest.mark.parametrize(("tile", "size"), [(3, (16, 24)), (5, (40, 12)), (8, (16, 24)), (1000, (16, 24))])
@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_the_untiled(kind: str, tile: int, size: tuple[int, int]) -> None:
    autoencoder, x, results = build(kind), torch.randn(2, 3, *size), []
    shape = (autoencoder.latent_channels, *(length // autoencoder.downsampling for length in size))
    noise, z_0 = torch.randn(2, *shape), torch.randn(2, *shape)
    for autoencoder.tile in (None, tile):
        with torch.no_grad():
            posterior = autoencoder.posterior(x)
            encoded, decoded = autoencoder.encode(x, noise), autoencoder.decode(z_0)
        results.append((posterior.mean, posterior.std, encoded, decoded))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)


def test_it_equals_the_untiled_in_half_precision() -> None:
    autoencoder, z_0, results = build(), torch.randn(1, 4, 6, 8), []
    for autoencoder.tile in (None, 7):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            results.append(autoencoder.decode(z_0))
    assert results[0].dtype == results[1].dtype == torch.bfloat16
    assert ((results[0] - results[1]).norm() / results[0].norm()).item() < 0.02


def test_decoding_tiles_separately_differs() -> None:
    """The reason for this module: half a latent decoded alone has other norm statistics and borders."""
    autoencoder, z_0 = build(), torch.randn(1, 4, 4, 8)
    with torch.no_grad():
        whole, half = autoencoder.decode(z_0), autoencoder.decode(z_0[..., :4])
    assert (whole[..., :8] - half[..., :8]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pixels"])
def test_no_convolution_and_no_norm_gets_more_than_a_tile(kind: str) -> None:
    autoencoder, lengths, called = build(kind), [], []
    autoencoder.tile, convolve = 4, torch.nn.functional.conv2d
    for module in (*autoencoder.encoder.modules(), *autoencoder.decoder.modules()):
        module.register_forward_pre_hook(lambda module, _: called.append(type(module)))

    def recorded_conv2d(x: torch.Tensor, weight: torch.Tensor, *rest: object) -> torch.Tensor:
        lengths.append(max(x.shape[-2:]))
        return convolve(x, weight, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling.F, "conv2d", recorded_conv2d)
        autoencoder.posterior(torch.randn(1, 3, 32, 32))
        autoencoder.decode(torch.randn(1, 4, 8, 8))
    assert 6 <= max(lengths) <= 9, "4 plus a margin of 1 on both sides, or 2 x 4 + 1 when downsampling"
    whole = {m for m in autoencoder.modules() if isinstance(m, AttentionBlock)}
    inside = {type(m) for block in whole for m in block.modules()} | {nn.Conv2d, nn.Identity}
    assert set(called) <= inside, "only attention and 1x1 convolutions are called directly"


class Untiled(EncoderBase, DecoderBase):
    """A network without a tiled version."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels = self.out_channels = 3
        self.downsampling = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_unsupported_layers_tiles_and_sizes_are_refused() -> None:
    untiled = Autoencoder(Untiled(), Untiled(), NoBottleneck(3))
    untiled.tile = 8
    with pytest.raises(ValueError, match="Untiled .* tile=null"):
        untiled.decode(torch.randn(1, 3, 4, 4))
    autoencoder = build()
    autoencoder.tile = 0
    with pytest.raises(ValueError, match="tile=0: .* at least 1"):
        autoencoder.decode(torch.randn(1, 4, 4, 4))
    autoencoder.tile = 8
    with pytest.raises(ValueError, match="18x16 pixels: .* multiples of 4"):
        autoencoder.posterior(torch.randn(1, 3, 18, 16))
