"""The comparison, from sampling files to a table and a picture."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from ldm.cli.compare_first_stages import main
from ldm.interop import safetensors
from ldm.networks.autoencoder import Autoencoder
from tests import tiny

PARTS = {"channels": 16, "num_res_blocks": 1, "patch": 4}
CONFIG = {
    "_target_": "ldm.networks.autoencoder.Autoencoder",
    "encoder": {"_target_": "ldm.networks.patch.PatchEncoder", "out_channels": 8, **PARTS},
    "decoder": {"_target_": "ldm.networks.patch.PatchDecoder", "in_channels": 4, **PARTS},
    "bottleneck": {"_target_": "ldm.networks.bottleneck.KLBottleneck", "latent_channels": 4},
}


def save(model: Autoencoder, path: Path) -> str:
    safetensors.save(path, model.state_dict(), CONFIG, "autoencoder", {})
    return str(path)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["compare_first_stages", *words])
    main()


def test_two_first_stages_side_by_side(tmp_path, monkeypatch, capsys):
    files = [save(tiny.autoencoder(), tmp_path / name / "autoencoder.safetensors") for name in ("one", "two")]
    words = [f"shards={tiny.shards(tmp_path / 'pictures')}", f"out={tmp_path / 'out'}", "size=16", "n=10"]
    run(monkeypatch, f"files=[{','.join(files)}]", *words, "batch_size=4", "columns=3", "device=cpu")
    found = json.loads((tmp_path / "out" / "first_stages.json").read_text())
    assert list(found) == ["one", "two"] and found["one"]["pictures"] == 10
    assert found["one"]["compression"] == 12 and found["one"]["psnr"] != found["two"]["psnr"]
    assert "| two | f4, 4 channels |" in (tmp_path / "out" / "first_stages.md").read_text()
    assert "| two |" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "first_stages.png") as sheet:
        assert sheet.height == 3 * 20 + 4, "the pictures and both reconstructions"


def test_names_must_tell_files_apart(tmp_path, monkeypatch, capsys):
    file = save(tiny.autoencoder(), tmp_path / "one" / "autoencoder.safetensors")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, f"files=[{file},{file}]", "shards=x", f"out={tmp_path / 'out'}")
    assert stop.value.code == 2 and "two files would be called 'one'" in capsys.readouterr().err
