"""Grey and multi-channel images from a folder through stage 1 to latents; mismatched channels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from ldm.cli import encode_latents, pack
from ldm.cli.training.model_checks import check_model_and_data
from ldm.conditioning.base import Compose
from ldm.conditioning.image_encoder import ImageEncoder
from ldm.data.fields.arrays import to_npy
from ldm.data.latents import read_header
from ldm.data.shards.reader import open_shards
from ldm.diffusion.parameterization import V
from ldm.diffusion.schedule import Cosine
from ldm.errors import UserError
from ldm.losses.perceptual import MultiScaleSSIM, RandomVGG
from ldm.model import LatentDiffusion
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.bottleneck import KLBottleneck
from ldm.networks.patch_autoencoder import PatchDecoder, PatchEncoder
from ldm.networks.unet import UNet
from tests.support import tiny
from tests.support.command_line import check_error, run_command

SHORT = ["trainer.max_steps=2", "trainer.val_check_interval=1", "callbacks.checkpoint.every_n_steps=1"]
ADVERSARY = ["adversary.start=1", "adversary.warmup=1", "adversary.ramp_steps=1"]


def run(main, *overrides: object) -> str:
    """Run a command; return its stdout."""
    status, out, err = run_command(main, *overrides)
    assert status == 0, err
    return out


def write_images(folder: Path, channels: int) -> Path:
    """Write 8 captioned arrays of `channels` channels, or RGB images for 1 channel; return the folder."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(8):
        if channels == 1:
            Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{i}.png")
        else:
            (folder / f"{i}.npy").write_bytes(to_npy(random.integers(0, 256, (64, 64, channels), np.uint8)))
        (folder / f"{i}.txt").write_text("a red circle")
    return folder


@pytest.mark.parametrize(("channels", "bands"), [(1, "null"), (5, "[3,2,1]")])
def test_from_a_folder_to_latents(tmp_path, channels, bands):
    images, shards, folder = tmp_path / "images", tmp_path / "shards", tmp_path / "run"
    write_images(images, channels)
    run(pack.main, f"source.path={images}", f"out={shards}", f"channels={channels}", "workers=0")
    sizes = [f"autoencoder.encoder.in_channels={channels}", f"autoencoder.decoder.out_channels={channels}"]
    options = [f"data.channels={channels}", f"perceptual.bands={bands}", *sizes, *SHORT, *ADVERSARY]
    data = [f"data.shards={shards}", f"data.val_shards={shards}", f"run={folder}"]
    run(train.main, "experiment=debug/ae", *data, *options)
    assert len(tiny.read_column(folder / "metrics.csv", "train/loss")) == 2
    assert Image.open(folder / "images" / "step00000002.png").mode == "RGB"
    encode = [f"first_stage={folder / 'autoencoder.safetensors'}", "device=cpu"]
    out = run(encode_latents.main, *encode, f"shards={shards}", f"out={tmp_path / 'z'}", "size=64")
    assert "latents of 8 images" in out
    header = read_header(open_shards(str(tmp_path / "z")).paths)
    assert header is not None and header.image_channels == channels
    if channels == 5:
        rgb = f"shards={tiny.shards(tmp_path / 'rgb')}"
        status, _, err = run_command(encode_latents.main, *encode, rgb, f"out={tmp_path / 'none'}", "size=16")
        check_error(status, err, ["none of the 12 images"])


def test_an_image_encoder_for_rgb_refuses_other_channels(tmp_path):
    conditioner = Compose({"image": ImageEncoder(16, 8, 8, 1, 2, dropout=0.1, vector=True)})
    unet = UNet(4, 4, 16, (1, 2), 1, (1,), 2, None, 8, 8)
    model = LatentDiffusion(unet, autoencoder(5, 5), conditioner, Cosine(100, 0.008, 0.999), V())
    stage = tiny.second_stage(model)
    data = tiny.data(tmp_path / "shards", 2)
    data.channels = 5
    with pytest.raises(UserError, match="'image' .*data.channels=5.*data.channels=3"):
        check_model_and_data(stage, data, max_steps=100)


def autoencoder(in_channels: int, out_channels: int) -> Autoencoder:
    encoder = PatchEncoder(patch=4, channels=16, num_res_blocks=1, out_channels=8, in_channels=in_channels)
    decoder = PatchDecoder(patch=4, channels=16, num_res_blocks=1, in_channels=4, out_channels=out_channels)
    return Autoencoder(encoder, decoder, KLBottleneck(4))


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "perceptual", "message"),
    [
        (
            1,
            1,
            MultiScaleSSIM(1),
            "1 channels .*data.channels=3.*data.channels=1",
        ),
        (
            3,
            1,
            MultiScaleSSIM(1),
            "3 channels .* 1.*autoencoder.decoder.out_channels=3",
        ),
        (3, 3, RandomVGG([4], [1], bands=[0, 1, 3]), r"perceptual.bands=\[0, 1, 3\]: .* 0\.\.2"),
    ],
)
def test_mismatched_channels_are_refused_before_training(
    tmp_path, in_channels, out_channels, perceptual, message
):
    stage = tiny.first_stage(autoencoder(in_channels, out_channels))
    stage.perceptual = perceptual
    with pytest.raises(UserError, match=message):
        check_model_and_data(stage, tiny.data(tmp_path / "shards", 2), max_steps=100)
