"""The command that writes the model file for an experiment's `init`."""

import torch
from omegaconf import OmegaConf

from ldm.cli import expand_inputs
from ldm.cli.config.compose import compose
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling.load import load_model
from ldm.interop import model_file
from tests.studies.test_samplers import run
from tests.support import tiny

DEBUG = ["experiment=debug/text", "data.shards=none"]
EDGES = [
    "experiment=debug/text",
    "denoiser.in_channels=68",
    "+conditioner.conditioners.edges={_target_: ldm.conditioning.spatial.ScalarMap, batch_key: edges, "
    "dropout: 0.1, factor: 8, "
    "rescaler: {_target_: ldm.conditioning.rescalers.PixelUnshuffle, channels: 1, factor: 8}}",
]


def test_writes_a_file_that_init_and_sampling_load(monkeypatch, capsys, tmp_path):
    ckpt, out = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    cfg = compose("train", DEBUG).stage.model
    old = instantiate(cfg)
    model_file.save(
        ckpt,
        old.state_dict(),
        OmegaConf.to_container(cfg, resolve=True),
        "latent_diffusion",
        {"step": "8", "size": "64"},
    )
    assert run(monkeypatch, expand_inputs.main, f"ckpt={ckpt}", f"out={out}", *EDGES) == 0, (
        capsys.readouterr().err
    )
    assert (
        "padded with zeros for the added input channels: denoiser.conv_in.weight" in capsys.readouterr().out
    )
    stage = tiny.second_stage(instantiate(compose("train", [*EDGES, "data.shards=none"]).stage.model))
    tensors, _, header = model_file.load(out, "latent_diffusion")
    model_file.load_state(stage.model, tensors, out)
    weight = stage.model.denoiser.conv_in.weight
    assert torch.equal(weight[:, :4], old.denoiser.conv_in.weight) and not weight[:, 4:].any()
    assert header["size"] == "64" and header["widened_from"] == str(ckpt)
    load_model(str(out), "cpu")


def test_an_autoencoder_is_refused(monkeypatch, capsys, tmp_path):
    words = ["experiment=debug/ae", f"ckpt={tmp_path / 'a'}", f"out={tmp_path / 'b'}"]
    assert run(monkeypatch, expand_inputs.main, *words) == 2
    assert "only models of stage 2 can be expanded" in capsys.readouterr().err
