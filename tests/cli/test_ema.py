"""Snapshots of a run become a model file with another average."""

import pytest
import torch
from omegaconf import OmegaConf

from ldm.callbacks.export import Export
from ldm.callbacks.posthoc_ema import PostHocEMA, gamma_from_length
from ldm.cli import ema
from ldm.cli.config.compose import compose
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling.load import load_model
from ldm.interop import model_file
from tests.callbacks.test_ema import History
from tests.callbacks.test_posthoc_ema import weights_of_steps
from tests.studies.test_samplers import run
from tests.support import tiny
from tests.support.sampling_models import TINY


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with m.safetensors and its snapshots, and the parameters after every step."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    cfg = compose("train", [*TINY, "callbacks=post_hoc", f"run={folder}"])
    stage = tiny.second_stage(instantiate(cfg.stage.model))
    config = OmegaConf.to_container(cfg.stage.model, resolve=True)
    history = History(stage)
    post_hoc = instantiate(cfg.callbacks.post_hoc)
    assert isinstance(post_hoc, PostHocEMA)
    post_hoc.every_n_steps = 2
    export = Export(str(folder / "m.safetensors"), config, "latent_diffusion", 10)
    tiny.trainer(8, [post_hoc, export]).fit(stage, tiny.data(folder / "shards", 8))
    return folder, history.steps[1:]


def test_writes_a_model_file_of_the_requested_average(trained, monkeypatch, capsys) -> None:
    folder, history = trained
    words = [
        f"ckpt={folder / 'm.safetensors'}",
        f"snapshots={folder / 'ema'}",
        f"out={folder / 'a.safetensors'}",
    ]
    assert run(monkeypatch, ema.main, *words, "length=0.1") == 0, capsys.readouterr().err
    assert "at step 8, averaged over length 0.1\nfrom 4 snapshots" in capsys.readouterr().out
    averaged, _, header = model_file.load(folder / "a.safetensors", "latent_diffusion")
    old, _, _ = model_file.load(folder / "m.safetensors", "latent_diffusion")
    assert header["ema_length"] == "0.1" and header["step"] == "8"
    for name, value in averaged.items():
        if name in history[0]:
            expected = sum(
                w * step[name].double()
                for w, step in zip(weights_of_steps(8, gamma_from_length(0.1)), history, strict=True)
            )
            torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(value, old[name])
    model, _ = load_model(str(folder / "a.safetensors"), "cpu")
    assert torch.equal(model.state_dict()[min(history[0])], averaged[min(history[0])])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["length=0.5"], "length=0.5 must be in (0, 0.2887]"),
        (["length=0.1", "step=5"], "no snapshot of step 5: give step=null or one of 2, 4, 6, 8"),
        (["length=0.1", "snapshots=/nowhere"], "no EMA snapshots in /nowhere"),
        (["length=0.1", "ckpt=/nowhere.safetensors"], "no model file /nowhere.safetensors"),
    ],
)
def test_a_mistake_is_one_sentence(trained, monkeypatch, capsys, words, sentence) -> None:
    folder, _ = trained
    options = {"ckpt": folder / "m.safetensors", "snapshots": folder / "ema", "out": folder / "b.safetensors"}
    options |= dict(word.split("=") for word in words)
    assert run(monkeypatch, ema.main, *(f"{k}={v}" for k, v in options.items())) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
