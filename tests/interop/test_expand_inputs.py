"""One model's weights start another: the same output at first, and other differences are refused."""

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
    """The tiny text-conditioned model, with a depth map concatenated to the latent."""
    text = tiny.diffusion().conditioner.conditioners["text"]
    depth = ScalarMap("depth", 0.0, 4, Resize(1, "bicubic"))
    unet = UNet(5, 4, channels, (1, 2), 1, (1,), 2, None, 8, 8)
    both = Compose({"text": text, "depth": depth})
    return LatentDiffusion(unet, tiny.autoencoder(), both, Cosine(100, 0.008, 0.999), V())


@torch.no_grad()
def test_added_input_channels_change_nothing_at_first():
    old, new = tiny.diffusion().eval(), with_depth().eval()
    torch.nn.init.normal_(old.denoiser.conv_out.weight)
    expanded = expand_inputs(new.state_dict(), old.state_dict())
    assert expanded.padded == ["denoiser.conv_in.weight"] and expanded.new == expanded.unused == []
    new.load_state_dict(expanded.tensors)
    batch = {**tiny.batch(2), "depth": torch.randn(2, 1, tiny.SIZE, tiny.SIZE)}
    z_t, t = torch.randn(2, 4, 4, 4), torch.tensor([3.0, 90.0])
    ours = new.denoiser(z_t, t, new.condition(batch))
    torch.testing.assert_close(ours, old.denoiser(z_t, t, old.condition(batch)))
    assert ours.abs().max() > 0.1


def test_new_tensors_keep_their_initialisation_and_unknown_ones_are_left_out():
    new, old = {"a": torch.ones(2), "b": torch.ones(3)}, {"b": torch.zeros(3), "c": torch.zeros(4)}
    expanded = expand_inputs(new, old)
    assert expanded.new == ["a"] and expanded.unused == ["c"] and expanded.tensors.keys() == {"a", "b"}
    assert expanded.tensors["a"].all() and not expanded.tensors["b"].any()


@pytest.mark.parametrize(
    ("new", "old"),
    [((4, 3, 3, 3), (4, 5, 3, 3)), ((4, 5, 3, 3), (8, 3, 3, 3)), ((4, 8), (4, 6)), ((4,), (3,))],
)
def test_any_other_difference_of_shapes_is_refused(new, old):
    with pytest.raises(UserError) as caught:
        expand_inputs({"x": torch.ones(new)}, {"x": torch.ones(old)})
    assert f"x is {old} in the file and {new}" in str(caught.value)
    assert "input channels of a convolution" in str(caught.value)
