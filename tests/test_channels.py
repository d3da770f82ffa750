"""Grey and many-band images from a folder through stage 1 to their latents, and what does not fit them."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from ldm.cli import encode_latents, pack
from ldm.cli.training import preflight
from ldm.conditioning.base import Compose
from ldm.conditioning.image_encoder import ImageEncoder
from ldm.data.fields.arrays import npy
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

SHORT = ["trainer.max_steps=2", "trainer.val_check_interval=1", "callbacks.checkpoint.every_n_steps=1"]
HEARD = ["adversary.start=1", "adversary.warmup=1", "adversary.ramp_steps=1"]


@pytest.fixture
def shell(monkeypatch):
    """Runs a command in this process."""

    def run(main, *words) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
        main()

    return run


def files(folder: Path, channels: int) -> Path:
    """Eight captioned images of colour, or arrays of many bands."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(8):
        if channels == 1:
            Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{i}.png")
        else:
            (folder / f"{i}.npy").write_bytes(npy(random.integers(0, 256, (64, 64, channels), np.uint8)))
        (folder / f"{i}.txt").write_text("a red circle")
    return folder


@pytest.mark.parametrize(("channels", "bands"), [(1, "null"), (5, "[3,2,1]")])
def test_from_a_folder_to_latents(shell, tmp_path, capsys, channels, bands):
    path, shards, run = files(tmp_path / "files", channels), tmp_path / "shards", tmp_path / "run"
    shell(pack.main, f"source.path={path}", f"out={shards}", f"channels={channels}", "workers=0")
    sizes = [f"autoencoder.encoder.in_channels={channels}", f"autoencoder.decoder.out_channels={channels}"]
    settings = [f"data.channels={channels}", f"perceptual.bands={bands}", *sizes, *SHORT, *HEARD]
    data = [f"data.shards={shards}", f"data.val_shards={shards}", f"run={run}"]
    shell(train.main, "experiment=debug/ae", *data, *settings)
    assert len(tiny.column(run / "metrics.csv", "train/loss")) == 2
    image = Image.open(run / "images" / "step00000002.png")
    assert image.mode == "RGB"
    first = f"first_stage={run / 'autoencoder.safetensors'}"
    shell(encode_latents.main, first, f"shards={shards}", f"out={tmp_path / 'z'}", "size=64", "device=cpu")
    assert "wrote the latents of 8 images" in capsys.readouterr().out
    header = read_header(open_shards(str(tmp_path / "z")).paths)
    assert header is not None and header.image_channels == channels
    if channels == 5:
        others = f"shards={tiny.shards(tmp_path / 'others')}"
        with pytest.raises(SystemExit):
            shell(encode_latents.main, first, others, f"out={tmp_path / 'none'}", "size=16", "device=cpu")
        assert "none of the 12 images in" in capsys.readouterr().err


def test_an_encoder_of_rgb_is_refused_other_channels(tmp_path):
    tower = Compose({"image": ImageEncoder(16, 8, 8, 1, 2, dropout=0.1, vector=True)})
    unet = UNet(4, 4, 16, (1, 2), 1, (1,), 2, None, 8, 8)
    model = LatentDiffusion(unet, autoencoder(5, 5), tower, Cosine(100, 0.008, 0.999), V())
    stage = tiny.second_stage(model)
    data = tiny.data(tmp_path / "shards", 2)
    data.channels = 5
    with pytest.raises(UserError, match="the condition image sees images in RGB and data.channels=5"):
        preflight.fits(stage, data)


def autoencoder(taken: int, given: int) -> Autoencoder:
    encoder = PatchEncoder(patch=4, channels=16, num_res_blocks=1, out_channels=8, in_channels=taken)
    decoder = PatchDecoder(patch=4, channels=16, num_res_blocks=1, in_channels=4, out_channels=given)
    return Autoencoder(encoder, decoder, KLBottleneck(4))


@pytest.mark.parametrize(
    ("taken", "given", "perceptual", "sentence"),
    [
        (
            1,
            1,
            MultiScaleSSIM(1),
            "takes images of 1 channels and data.channels=3: give data.channels=1, or",
        ),
        (
            3,
            1,
            MultiScaleSSIM(1),
            "takes images of 3 channels and gives 1: give autoencoder.decoder.out_ch",
        ),
        (3, 3, RandomVGG([4], [1], bands=[0, 1, 3]), r"perceptual.bands=\[0, 1, 3\]: give three of"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(tmp_path, taken, given, perceptual, sentence):
    stage = tiny.first_stage(autoencoder(taken, given))
    stage.perceptual = perceptual
    with pytest.raises(UserError, match=sentence):
        preflight.fits(stage, tiny.data(tmp_path / "shards", 2))
