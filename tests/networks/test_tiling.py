"""Tile by tile is as untiled, everywhere."""

import pytest
import torch

from ldm.networks import tiling
from ldm.networks.autoencoder import Autoencoder, Decoder, Encoder
from ldm.networks.bottleneck import KLBottleneck
from ldm.networks.codebook import VQBottleneck
from ldm.networks.patch import PatchDecoder, PatchEncoder


def model(levels: tuple[int, ...] = (), quantised: bool = False) -> Autoencoder:
    torch.manual_seed(0)
    bottleneck = VQBottleneck(4, 30) if quantised else KLBottleneck(4)
    encoder = Encoder(3, 16, (1, 2, 2), 1, levels, out_channels=bottleneck.in_channels)
    made = Autoencoder(encoder, Decoder(3, 16, (1, 2, 2), 1, levels, in_channels=4), bottleneck)
    for p in made.parameters():
        p.data += 0.1 * torch.randn_like(p)
    made.set_latent_statistics(0.3, 2.0)
    return made


@pytest.mark.parametrize("tile", [5, 8, 1000])
@pytest.mark.parametrize("size", [(16, 24), (40, 12)])
def test_it_equals_the_untiled(tile: int, size: tuple[int, int]) -> None:
    autoencoder, x = model(), torch.randn(2, 3, *size)
    noise = torch.randn(2, 4, size[0] // 4, size[1] // 4)
    with torch.no_grad():
        z_0 = autoencoder.encode(x, noise)
        x_hat = autoencoder.decode(z_0)
    torch.testing.assert_close(tiling.encode(autoencoder, x, noise, tile), z_0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tiling.decode(autoencoder, z_0, tile), x_hat, atol=1e-4, rtol=1e-4)


def test_attention_in_a_level_and_a_codebook_change_nothing() -> None:
    autoencoder, x = model(levels=(2,), quantised=True), torch.randn(1, 3, 24, 24)
    noise = torch.zeros(1, 4, 6, 6)
    with torch.no_grad():
        z_0 = autoencoder.encode(x, noise)
        x_hat = autoencoder.decode(z_0)
    torch.testing.assert_close(tiling.encode(autoencoder, x, noise, 7), z_0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tiling.decode(autoencoder, z_0, 7), x_hat, atol=1e-4, rtol=1e-4)


def test_tiles_apart_would_not_do() -> None:
    """What is avoided: a half decoded alone has other statistics and another border."""
    autoencoder, z_0 = model(), torch.randn(1, 4, 4, 8)
    with torch.no_grad():
        whole, half = autoencoder.decode(z_0), autoencoder.decode(z_0[..., :4])
    assert (whole[..., :8] - half[..., :8]).abs().max() > 1e-2


def test_no_layer_sees_more_than_a_tile_at_full_size() -> None:
    autoencoder, sides = model(), []
    convolve = torch.nn.functional.conv2d

    def watched(x: torch.Tensor, weight: torch.Tensor, *rest: object) -> torch.Tensor:
        sides.append(max(x.shape[-2:]))
        return convolve(x, weight, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling.F, "conv2d", watched)
        tiling.decode(autoencoder, torch.randn(1, 4, 16, 16), 8)
    assert sides and max(sides) <= 18, "16 in the coarse middle, 8 and a margin of 1 in tiles"


def test_what_it_cannot_do_is_refused() -> None:
    encoder = PatchEncoder(patch=4, channels=8, out_channels=8)
    patches = Autoencoder(encoder, PatchDecoder(patch=4, channels=8, in_channels=4), KLBottleneck(4))
    with pytest.raises(ValueError, match="tiled decoding is for Decoder, not for PatchDecoder"):
        tiling.decode(patches, torch.randn(1, 4, 4, 4), 8)
    with pytest.raises(ValueError, match="tiled encoding is for Encoder, not for PatchEncoder"):
        tiling.encode(patches, torch.randn(1, 3, 16, 16), torch.zeros(1, 4, 4, 4), 8)
    with pytest.raises(ValueError, match="at least 1 pixel a side, not 0"):
        tiling.decode(model(), torch.randn(1, 4, 4, 4), 0)
    with pytest.raises(ValueError, match="18x16 pixels do not divide by the factor 4"):
        tiling.encode(model(), torch.randn(1, 3, 18, 16), torch.zeros(1, 4, 4, 4), 8)
