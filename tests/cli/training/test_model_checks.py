"""Stage 1 refuses images that its losses do not support, with the stage on a real device or on meta."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.cli.training.model_checks import check_checkpoint, check_model_and_data
from ldm.data.order.filters import AspectBuckets
from ldm.data.order.options import OrderOptions
from ldm.errors import UserError
from ldm.losses.adversary import Adversary
from ldm.losses.equivariance import Equivariance
from ldm.losses.perceptual import LPIPS, MultiScaleSSIM, Perceptual, RandomVGG
from ldm.networks.discriminator import PatchDiscriminator
from ldm.stages import AutoencoderStage
from tests.support import tiny


def build_stage(
    perceptual: Perceptual, layers: int, smallest: float | None, norm: Callable
) -> AutoencoderStage:
    adversary = Adversary(PatchDiscriminator(channels=4, num_layers=layers, norm=norm), 0.5, 10)
    equivariance = None if smallest is None else Equivariance(0.5, smallest)
    stage = tiny.first_stage(adversary=adversary, equivariance=equivariance)
    stage.perceptual = perceptual
    return stage


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("perceptual", "layers", "smallest", "message"),
    [
        (lambda: RandomVGG([4], [1]), 3, 0.25, r"adversary .* 16x16, .* 64x64 .*\(.* 24 .*\): raise equi"),
        (lambda: MultiScaleSSIM(3), 1, 0.5, r"perceptual .* 32x32.*\(3 scales .* 44 .*: raise equivariance"),
        (
            lambda: RandomVGG([4], [1]),
            5,
            None,
            r"of 64x64 \(.* 96 .*\): raise data.size, or choose another adversary",
        ),
        (LPIPS, 1, 0.1, r"perceptual .* 8x8, .* equivariance shrinks 64x64"),
    ],
)
def test_images_that_are_too_small_are_refused(tmp_path, device, perceptual, layers, smallest, message):
    with torch.device(device):
        stage = build_stage(perceptual(), layers, smallest, nn.BatchNorm2d)
    data = tiny.data(tmp_path, 2)
    data.size = 64
    with pytest.raises(UserError, match=message):
        check_model_and_data(stage, data, max_steps=100)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("perceptual", [LPIPS, lambda: MultiScaleSSIM(2), lambda: RandomVGG([4, 4], [1, 1])])
def test_images_of_the_minimum_size_pass_and_the_stage_does_not_change(tmp_path, device, perceptual):
    with torch.device(device):
        stage = build_stage(perceptual(), 3, 0.4, nn.BatchNorm2d)
    before, data = tiny.snapshot(stage), tiny.data(tmp_path, 2)
    data.size = 60
    check_model_and_data(stage, data, max_steps=100)
    assert device == "meta" or not tiny.changed_names(stage, before)
    data.order = OrderOptions(buckets=AspectBuckets([[60, 60], [120, 40]]))
    with pytest.raises(UserError, match="of 48x16, .* shrinks 120x40"):
        check_model_and_data(stage, data, max_steps=100)


def test_a_resumed_run_has_the_first_stage_of_its_checkpoint():
    """Another one would be replaced by the checkpoint's without a word; trained weights may differ."""
    stage = tiny.second_stage(first_stage_weights="b.safetensors")
    checkpoint = {"state_dict": tiny.snapshot(stage)}
    torch.nn.init.normal_(stage.model.denoiser.conv_out.weight)
    check_checkpoint(checkpoint, Path("a.ckpt"), stage)
    stage.model.first_stage.latent_std[1] = 2.0
    with pytest.raises(UserError, match="first_stage=b.safetensors differs from the first stage in a.ckpt, "):
        check_checkpoint(checkpoint, Path("a.ckpt"), stage)
