import pytest
import torch
from diffusers.models.autoencoders.autoencoder_dc import DCDownBlock2d, DCUpBlock2d

from ldm.networks.autoencoder import Autoencoder
from ldm.networks.bottleneck import KLBottleneck, NoBottleneck
from ldm.networks.dc_ae import (
    ChannelToSpace,
    DeepDecoder,
    DeepEncoder,
    SpaceToChannel,
    average_channels,
    repeat_channels,
)


@pytest.mark.parametrize(("channels", "out_channels"), [(8, 16), (16, 16), (16, 8)])
def test_resampling_equals_diffusers(channels: int, out_channels: int) -> None:
    pairs = (
        (SpaceToChannel(channels, out_channels), DCDownBlock2d(channels, out_channels, downsample=True)),
        (ChannelToSpace(channels, out_channels), DCUpBlock2d(channels, out_channels)),
    )
    for ours, theirs in pairs:
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(2, channels, 6, 4, requires_grad=True)
        y = ours(x)
        torch.testing.assert_close(y, theirs(x))
        (mine,), (other,) = (torch.autograd.grad(z.square().sum(), x) for z in (y, theirs(x)))
        torch.testing.assert_close(mine, other)


def test_the_shortcuts_alone_are_lossless() -> None:
    x = torch.randn(1, 4, 4, 4)
    down, up = SpaceToChannel(4, 16), ChannelToSpace(16, 4)
    for layer in (down, up):
        torch.nn.init.zeros_(layer.conv.weight)
        torch.nn.init.zeros_(layer.conv.bias)
    torch.testing.assert_close(up(down(x)), x)
    torch.testing.assert_close(average_channels(repeat_channels(x, 12), 4), x)


@pytest.mark.parametrize("bottleneck", [NoBottleneck(4), KLBottleneck(4)], ids=["none", "kl"])
def test_it_encodes_and_decodes(bottleneck: NoBottleneck | KLBottleneck) -> None:
    encoder = DeepEncoder(3, 8, (1, 2, 4), (0, 1, 1), (2,), bottleneck.in_channels)
    decoder = DeepDecoder(3, 8, (1, 2, 4), (0, 1, 1), (2,), 4)
    model, x = Autoencoder(encoder, decoder, bottleneck), torch.randn(2, 3, 16, 24)
    z = model.posterior(x).mean
    assert z.shape == (2, 4, 4, 6) and model.downsampling == 4
    assert model.reconstruct(z).shape == x.shape
    assert model.last_layer is decoder.conv_out.weight


def test_channels_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="between 32 and 12 channels"):
        SpaceToChannel(8, 12)
    with pytest.raises(ValueError, match="between 32 and 5 channels"):
        DeepEncoder(3, 8, (1, 4), (1, 1), (), 5)


@pytest.mark.parametrize("part", [DeepEncoder, DeepDecoder])
def test_every_level_has_its_number_of_blocks(part):
    with pytest.raises(ValueError, match=r"num_res_blocks=\[1\] has 1 numbers for the 2 levels"):
        part(4, 16, [1, 2], [1], [], 8)
