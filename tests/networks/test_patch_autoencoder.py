import pytest
import torch

from ldm.networks.autoencoder import Autoencoder
from ldm.networks.bottleneck import KLBottleneck
from ldm.networks.patch_autoencoder import PatchDecoder, PatchEncoder


@pytest.mark.parametrize(("patch", "attention"), [(4, False), (8, True)])
def test_it_encodes_and_decodes(patch: int, attention: bool) -> None:
    encoder = PatchEncoder(
        patch=patch, channels=16, num_res_blocks=2, mid_attention=attention, out_channels=10
    )
    decoder = PatchDecoder(patch=patch, channels=16, num_res_blocks=2, mid_attention=attention, in_channels=5)
    model, x = Autoencoder(encoder, decoder, KLBottleneck(5)), torch.randn(2, 3, 16, 32)
    z = model.posterior(x).mean
    assert z.shape == (2, 5, 16 // patch, 32 // patch)
    assert model.reconstruct(z).shape == x.shape
    assert model.downsampling == patch


def test_a_latent_position_is_a_patch_of_the_image() -> None:
    """With 1x1 kernels, a latent position affects only its own patch."""
    decoder = PatchDecoder(patch=4, channels=8, num_res_blocks=0, in_channels=2)
    decoder.norm_out = torch.nn.Identity()
    for conv in (decoder.conv_in, decoder.to_pixels, decoder.conv_pixels, decoder.conv_out):
        conv.weight.data[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    z = torch.randn(1, 2, 3, 3)
    modified = z.clone()
    modified[:, :, 1, 2] += 1
    changed = (decoder(z) != decoder(modified)).any(1)[0]
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[4:8, 8:12] = True
    assert torch.equal(changed, expected)


def test_the_last_layer_outputs_pixels() -> None:
    decoder = PatchDecoder(patch=4, channels=8, in_channels=2)
    assert decoder.last_layer is decoder.conv_out.weight
