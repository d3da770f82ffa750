"""One model's weights begin another: the same output at first, and what does not fit is said."""

import pytest
import torch

from ldm.conditioning.base import Compose
from ldm.conditioning.rescalers import Resize
from ldm.conditioning.spatial import ScalarMap
from ldm.diffusion.parameterization import V
from ldm.diffusion.schedule import Cosine
from ldm.errors import UserError
from ldm.interop.expand_inputs import expand_inputs
from ldm.model import LatentDiffusion
from ldm.networks.unet import UNet
from tests.support import tiny


def with_depth(channels: int = 16) -> LatentDiffusion:
    """The tiny model of text, with a map of depth beside the latent."""
    text = tiny.diffusion().conditioner.conditioners["text"]
    depth = ScalarMap("depth", 0.0, 4, Resize(1, "bicubic"))
    unet = UNet(5, 4, channels, (1, 2), 1, (1,), 2, None, 8, 8)
    both = Compose({"text": text, "depth": depth})
    return LatentDiffusion(unet, tiny.autoencoder(), both, Cosine(100, 0.008, 0.999), V())


@torch.no_grad()
def test_more_channels_in_change_nothing_at_first():
    old, new = tiny.diffusion().eval(), with_depth().eval()
    torch.nn.init.normal_(old.denoiser.conv_out.weight)
    made = expand_inputs(new.state_dict(), old.state_dict())
    assert made.widened == ["denoiser.conv_in.weight"] and made.new == made.left == []
    new.load_state_dict(made.tensors)
    batch = {**tiny.batch(2), "depth": torch.randn(2, 1, tiny.SIZE, tiny.SIZE)}
    z_t, t = torch.randn(2, 4, 4, 4), torch.tensor([3.0, 90.0])
    ours = new.denoiser(z_t, t, new.condition(batch))
    torch.testing.assert_close(ours, old.denoiser(z_t, t, old.condition(batch)))
    assert ours.abs().max() > 0.1


def test_what_is_new_keeps_its_own_weights_and_the_rest_is_left():
    own, old = {"a": torch.ones(2), "b": torch.ones(3)}, {"b": torch.zeros(3), "c": torch.zeros(4)}
    made = expand_inputs(own, old)
    assert made.new == ["a"] and made.left == ["c"] and made.tensors.keys() == {"a", "b"}
    assert made.tensors["a"].all() and not made.tensors["b"].any()


@pytest.mark.parametrize(
    ("own", "old"),
    [((4, 3, 3, 3), (4, 5, 3, 3)), ((4, 5, 3, 3), (8, 3, 3, 3)), ((4, 8), (4, 6)), ((4,), (3,))],
)
def test_another_shape_is_refused(own, old):
    with pytest.raises(UserError, match="x is .* only more channels into a convolution"):
        expand_inputs({"x": torch.ones(own)}, {"x": torch.ones(old)})
