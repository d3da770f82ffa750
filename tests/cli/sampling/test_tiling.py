"""`tile=SIDE` of sample.py and of encode_latents: the same images and latents, part by part."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import sample
from ldm.cli import encode_latents
from ldm.cli.config.compose import compose
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling.tiling import set_tile
from ldm.data.latents import read_header
from ldm.data.loading.loader import sequential_loader
from ldm.data.shards.reader import open_shards
from ldm.errors import UserError
from ldm.interop import model_file
from ldm.networks import tiling
from tests.cli.sampling.test_load import TINY
from tests.support import tiny


@pytest.fixture
def shell(monkeypatch, capsys):
    """Runs a command in this process; answers (exit status, stderr, the tiles' sides that were computed)."""
    made, tiles = [], tiling.Tiles

    class Watched(tiles):
        def __init__(self, tile: int, device: torch.device) -> None:
            made.append(tile)
            super().__init__(tile, device)

    monkeypatch.setattr(tiling, "Tiles", Watched)

    def run(main, *words: str) -> tuple[int, str, set[int]]:
        made.clear()
        monkeypatch.setattr(sys, "argv", ["a.py", *words])
        status = 0
        try:
            main()
        except SystemExit as error:
            status = int(error.code or 0)
        return status, capsys.readouterr().err, set(made)

    return run


def file_of(path: Path, config, kind: str) -> str:
    """A model file of random weights."""
    torch.manual_seed(0)
    tensors = instantiate(config).state_dict()
    plain = OmegaConf.to_container(config, resolve=True)
    model_file.save(path, tensors, plain, kind, {"step": "0", "size": "16"})
    return str(path)


def test_sample_draws_the_same_images(shell, tmp_path):
    ckpt = file_of(tmp_path / "m.safetensors", compose("train", TINY).stage.model, "latent_diffusion")
    drawn = []
    for tile in ("null", "3"):
        out = tmp_path / tile
        given = (f"ckpt={ckpt}", "prompts=['a red square']", "n=1", "steps=2", "scale=1", "device=cpu")
        status, err, sides = shell(sample.main, *given, f"out={out}", f"tile={tile}")
        assert status == 0 and sides == ({3} if tile == "3" else set()), err
        drawn.append(np.array(Image.open(out / "0000_000000.png")).astype(int))
    assert drawn[0].std() > 1 and np.abs(drawn[0] - drawn[1]).max() <= 1


def test_encode_latents_writes_the_same_latents(shell, tmp_path):
    """Of the demo's own first stage."""
    config = compose("train", ["experiment=demo/ae"]).autoencoder
    first = file_of(tmp_path / "ae.safetensors", config, "autoencoder")
    shards, written = tiny.shards(tmp_path / "images", 3), []
    for tile in ("null", "1"):
        given = (f"first_stage={first}", f"shards={shards}", "size=16", "device=cpu")
        status, err, sides = shell(encode_latents.main, *given, f"out={tmp_path / tile}", f"tile={tile}")
        assert status == 0 and sides == ({1} if tile == "1" else set()), err
        written.append(moments(tmp_path / tile))
    assert len(written[0]) == 3 and written[0].std() > 0.01
    np.testing.assert_allclose(written[1], written[0], rtol=2e-3, atol=2e-3)


def moments(folder: Path) -> np.ndarray:
    """Of every image."""
    shards = open_shards(str(folder))
    header = read_header(shards.paths)
    (batch,) = sequential_loader(shards, header.fields(0), batch_size=8)
    return batch["moments"].float().numpy()


@pytest.mark.parametrize("tile", ["0", "small"])
def test_another_side_is_refused_before_anything_is_drawn(shell, tmp_path, tile):
    ckpt = file_of(tmp_path / "m.safetensors", compose("train", TINY).stage.model, "latent_diffusion")
    status, err, sides = shell(sample.main, f"ckpt={ckpt}", "prompts=[a]", "device=cpu", f"tile={tile}")
    assert status == 2 and err.count("\n") == 1 and "must be the height and width of a tile" in err
    assert not sides


def test_the_first_stage_is_told():
    model = tiny.autoencoder()
    set_tile(model, 512)
    assert model.tile == 512 and "tile" not in model.state_dict()
    set_tile(model, None)
    assert model.tile is None
    for wrong in (0, -8, 1.5, True, "small"):
        with pytest.raises(UserError, match=f"tile={wrong} must be the height and width"):
            set_tile(model, wrong)
