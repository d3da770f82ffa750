"""`tile=` of sample.py and encode_latents: the same images and latents, computed in tiles."""

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
from tests.support import tiny
from tests.support.command_line import check_error, run_command


@pytest.fixture
def used_tiles(monkeypatch) -> set[int]:
    """The side lengths of the tiles that were computed, in latent positions."""
    used: set[int] = set()

    class RecordedTiles(tiling.Tiles):
        def __init__(self, tile: int, device: torch.device) -> None:
            used.add(tile)
            super().__init__(tile, device)

    monkeypatch.setattr(tiling, "Tiles", RecordedTiles)
    return used


def test_sample_gives_the_same_images(used_tiles, trained, tmp_path):
    images = []
    for tile in ("null", "3"):
        out = tmp_path / tile
        overrides = (f"ckpt={trained[2]}", "prompts=['a red square']", "n=1", "steps=2", "scale=1")
        status, _, err = run_command(sample.main, *overrides, "device=cpu", f"out={out}", f"tile={tile}")
        assert status == 0, err
        assert used_tiles == ({3} if tile == "3" else set())
        images.append(np.array(Image.open(out / "0000_000000.png")).astype(int))
    assert images[0].std() > 1 and np.abs(images[0] - images[1]).max() <= 1


def test_encode_latents_writes_the_same_latents(used_tiles, tmp_path):
    """With the demo's first stage."""
    config = compose("train", ["experiment=demo/ae"]).autoencoder
    path, plain = tmp_path / "ae.safetensors", OmegaConf.to_container(config, resolve=True)
    torch.manual_seed(0)
    tensors = instantiate(config).state_dict()
    model_file.save(path, tensors, plain, "autoencoder", {"step": "0", "size": "16"})
    shards, latents = tiny.shards(tmp_path / "images", 3), []
    for tile in ("null", "1"):
        overrides = (f"first_stage={path}", f"shards={shards}", "size=16", "device=cpu")
        out = f"out={tmp_path / tile}"
        status, _, err = run_command(encode_latents.main, *overrides, out, f"tile={tile}")
        assert status == 0, err
        assert used_tiles == ({1} if tile == "1" else set())
        latents.append(read_moments(tmp_path / tile))
    assert len(latents[0]) == 3 and latents[0].std() > 0.01
    np.testing.assert_allclose(latents[1], latents[0], rtol=2e-3, atol=2e-3)


def read_moments(folder: Path) -> np.ndarray:
    """Return the moments of every image of a folder of latents."""
    shards = open_shards(str(folder))
    header = read_header(shards.paths)
    (batch,) = sequential_loader(shards, header.fields(0), batch_size=8)
    return batch["moments"].float().numpy()


@pytest.mark.parametrize("tile", ["0", "small"])
def test_an_invalid_tile_is_refused_before_sampling(used_tiles, trained, tile):
    overrides = (f"ckpt={trained[2]}", "prompts=[a]", "device=cpu", f"tile={tile}")
    status, _, err = run_command(sample.main, *overrides)
    check_error(status, err, [f"tile must be a whole number in 1..16384, or null, not {tile}"])
    assert err.count("\n") == 1
    assert not used_tiles


def test_set_tile_checks_and_sets_the_tile_of_the_first_stage():
    model = tiny.autoencoder()
    set_tile(model, 512)
    assert model.tile == 512 and "tile" not in model.state_dict()
    set_tile(model, None)
    assert model.tile is None
    for invalid in (0, -8, 1.5, True, "small"):
        with pytest.raises(UserError, match=f"tile={invalid} must be"):
            set_tile(model, invalid)
