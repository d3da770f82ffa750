"""What stage 1 compares images with must take the smallest that it will see, on real or on meta weights."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ldm.cli.training import preflight
from ldm.data.order.filters import AspectBuckets
from ldm.data.order.options import OrderOptions
from ldm.errors import UserError
from ldm.losses.adversary import Adversary
from ldm.losses.equivariance import Equivariance
from ldm.losses.perceptual import LPIPS, MultiScaleSSIM, Perceptual, RandomVGG
from ldm.networks.discriminator import PatchDiscriminator
from ldm.stages import AutoencoderStage
from tests.support import tiny


def stage(perceptual: Perceptual, layers: int, smallest: float | None, norm: Callable) -> AutoencoderStage:
    adversary = Adversary(PatchDiscriminator(channels=4, num_layers=layers, norm=norm), 0.5, 10)
    made = tiny.first_stage(
        adversary=adversary, equivariance=None if smallest is None else Equivariance(0.5, smallest)
    )
    made.perceptual = perceptual
    return made


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("perceptual", "layers", "smallest", "said"),
    [
        (lambda: RandomVGG([4], [1]), 3, 0.25, r"adversary .* 16x16 \(.* 24 .*\), .* of 64x64: raise equi"),
        (
            lambda: MultiScaleSSIM(3),
            1,
            0.5,
            r"perceptual .* 32x32 \(3 scales of MS-SSIM need 44 .*: raise e",
        ),
        (
            lambda: RandomVGG([4], [1]),
            5,
            None,
            r"of 64x64 \(.* needs 96 a side\): raise data.size, or choos",
        ),
        (LPIPS, 1, 0.1, r"perceptual .* 8x8 \(.*\), to which equivariance shrinks those of 64x64"),
    ],
)
def test_images_too_small_are_refused_before_training(tmp_path, device, perceptual, layers, smallest, said):
    with torch.device(device):
        made = stage(perceptual(), layers, smallest, nn.BatchNorm2d)
    data = tiny.data(tmp_path, 2)
    data.size = 64
    with pytest.raises(UserError, match=said):
        preflight.fits(made, data)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("perceptual", [LPIPS, lambda: MultiScaleSSIM(2), lambda: RandomVGG([4, 4], [1, 1])])
def test_images_of_the_least_size_are_taken_and_nothing_moves(tmp_path, device, perceptual):
    with torch.device(device):
        made = stage(perceptual(), 3, 0.4, nn.BatchNorm2d)
    before, data = tiny.snapshot(made), tiny.data(tmp_path, 2)
    data.size = 60
    preflight.fits(made, data)
    assert device == "meta" or not tiny.changed(made, before)
    data.order = OrderOptions(buckets=AspectBuckets([[60, 60], [120, 40]]))
    with pytest.raises(UserError, match="of 48x16 .* shrinks those of 120x40"):
        preflight.fits(made, data)
