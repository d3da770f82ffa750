"""The command at its smallest size, on a model that trained for one step."""

import sys

from omegaconf import OmegaConf

from ldm.callbacks.export import Export
from ldm.cli.config.compose import compose
from ldm.cli.config.instantiate import instantiate
from studies import samplers
from tests.support import tiny
from tests.support.sampling_models import TINY


def run(monkeypatch, main, *words) -> int:
    """Run a command and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_writes_a_table_and_a_grid(tmp_path, monkeypatch, capsys) -> None:
    cfg = compose("train", TINY)
    stage = tiny.second_stage(instantiate(cfg.stage.model))
    path, config = tmp_path / "m.safetensors", OmegaConf.to_container(cfg.stage.model, resolve=True)
    saver = Export(str(path), config, "latent_diffusion", 10)
    tiny.trainer(1, [saver]).fit(stage, tiny.data(tmp_path / "shards", 1))
    words = [
        f"ckpt={path}",
        f"out={tmp_path}",
        "n=113",
        "reference=113",
        "steps=[1,2]",
        "~samplers.unipc",
        "batch_size=113",
    ]
    words += [
        "~samplers.ddim",
        "~samplers.euler_ancestral",
        "~samplers.dpmpp_2m_sde",
        "shown=1",
        "device=cpu",
    ]
    assert run(monkeypatch, samplers.main, *words) == 0, capsys.readouterr().err
    lines = (tmp_path / "samplers_demo.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines[4:]]
    assert cells == [["heun", "1", "1"], ["heun", "2", "3"], ["dpmpp_2m", "1", "1"], ["dpmpp_2m", "2", "2"]]
    assert (tmp_path / "samplers_demo.png").is_file()
