"""The comparison, from model files to a table and a grid."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from ldm.interop import model_file
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.bottleneck import KLBottleneck
from ldm.networks.patch_autoencoder import PatchDecoder, PatchEncoder
from studies.first_stages import main
from tests.support import tiny

PARTS = {"channels": 16, "num_res_blocks": 1, "patch": 4}


def save(path: Path, channels: int = 3) -> str:
    """Save the model file of an untrained first stage; return its path."""
    encoder = {"out_channels": 8, "in_channels": channels, **PARTS}
    decoder = {"in_channels": 4, "out_channels": channels, **PARTS}
    config = {
        "_target_": "ldm.networks.autoencoder.Autoencoder",
        "encoder": {"_target_": "ldm.networks.patch_autoencoder.PatchEncoder", **encoder},
        "decoder": {"_target_": "ldm.networks.patch_autoencoder.PatchDecoder", **decoder},
        "bottleneck": {"_target_": "ldm.networks.bottleneck.KLBottleneck", "latent_channels": 4},
    }
    model = Autoencoder(PatchEncoder(**encoder), PatchDecoder(**decoder), KLBottleneck(4))
    model_file.save(path, model.state_dict(), config, "autoencoder", {})
    return str(path)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["first_stages", *words])
    main()


def test_two_first_stages_side_by_side(tmp_path, monkeypatch, capsys):
    files = [save(tmp_path / name / "autoencoder.safetensors") for name in ("one", "two")]
    words = [f"shards={tiny.shards(tmp_path / 'images')}", f"out={tmp_path / 'out'}", "size=16", "n=10"]
    run(monkeypatch, f"files=[{','.join(files)}]", *words, "batch_size=4", "columns=3", "device=cpu")
    results = json.loads((tmp_path / "out" / "first_stages.json").read_text())
    assert list(results) == ["one", "two"] and results["one"]["images"] == 10
    assert results["one"]["compression"] == 12 and results["one"]["psnr"] != results["two"]["psnr"]
    assert "| two | f4, 4 channels |" in (tmp_path / "out" / "first_stages.md").read_text()
    assert "| two |" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "first_stages.png") as sheet:
        assert sheet.height == 3 * 20 + 4, "a row of images and two of reconstructions"


def test_names_must_be_unique(tmp_path, monkeypatch, capsys):
    file = save(tmp_path / "one" / "autoencoder.safetensors")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, f"files=[{file},{file}]", "shards=x", f"out={tmp_path / 'out'}")
    assert stop.value.code == 2 and "'one': give each its own folder" in capsys.readouterr().err


def test_grey_first_stages_get_grey_images(tmp_path, monkeypatch):
    file = save(tmp_path / "grey.safetensors", channels=1)
    words = [f"shards={tiny.shards(tmp_path / 'images')}", f"out={tmp_path / 'out'}", "size=16", "n=4"]
    run(monkeypatch, f"files=[{file}]", *words, "device=cpu")
    results = json.loads((tmp_path / "out" / "first_stages.json").read_text())
    assert results["grey"]["compression"] == 4 and results["grey"]["latent_std"][0] > 0


@pytest.mark.parametrize(
    ("channels", "sentence"),
    [
        ((3, 1), "take images of different channels"),
        ((5, 5), "the perceptual network needs 3 channels, but the images have 5"),
    ],
)
def test_first_stages_must_take_the_same_channels(tmp_path, monkeypatch, capsys, channels, sentence):
    files = [save(tmp_path / f"{i}.safetensors", n) for i, n in enumerate(channels)]
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, f"files=[{','.join(files)}]", "shards=x", f"out={tmp_path / 'out'}", "device=cpu")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in error
    assert channels[0] == channels[1] or f"{files[0]} 3, {files[1]} 1: compare them" in error
