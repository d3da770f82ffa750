"""From a run's snapshots to a model file of another average."""

import pytest
import torch
from omegaconf import OmegaConf

from ldm.callbacks.export import Export
from ldm.callbacks.posthoc_ema import PostHocEMA, gamma_from_length
from ldm.cli import ema
from ldm.cli.config.compose import compose
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling import files
from ldm.interop import model_file
from tests.callbacks.test_ema import History
from tests.callbacks.test_posthoc_ema import weights_of_steps
from tests.cli.sampling.test_files import TINY
from tests.studies.test_samplers import run
from tests.support import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder with m.safetensors and its snapshots, the parameters after every step)."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    cfg = compose("train", [*TINY, "callbacks=post_hoc", f"run={folder}"])
    stage, config = (
        tiny.second_stage(instantiate(cfg.stage.model)),
        OmegaConf.to_container(cfg.stage.model, resolve=True),
    )
    history = History(stage)
    kept = instantiate(cfg.callbacks.post_hoc)
    assert isinstance(kept, PostHocEMA)
    kept.every_n_steps = 2
    file = Export(str(folder / "m.safetensors"), config, "latent_diffusion", 10)
    tiny.trainer(8, [kept, file]).fit(stage, tiny.data(folder / "shards", 8))
    return folder, history.steps[1:]


def test_writes_a_file_of_the_wanted_average(trained, monkeypatch, capsys) -> None:
    folder, history = trained
    words = [
        f"ckpt={folder / 'm.safetensors'}",
        f"snapshots={folder / 'ema'}",
        f"out={folder / 'a.safetensors'}",
    ]
    assert run(monkeypatch, ema.main, *words, "length=0.1") == 0, capsys.readouterr().err
    assert "at step 8, averaged over length 0.1\nfrom 4 snapshots" in capsys.readouterr().out
    made, _, header = model_file.load(folder / "a.safetensors", "latent_diffusion")
    old, _, _ = model_file.load(folder / "m.safetensors", "latent_diffusion")
    assert header["ema_length"] == "0.1" and header["step"] == "8"
    for name, value in made.items():
        if name in history[0]:
            expected = sum(
                w * step[name].double()
                for w, step in zip(weights_of_steps(8, gamma_from_length(0.1)), history, strict=True)
            )
            torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(value, old[name])
    model, _ = files.load_model(str(folder / "a.safetensors"), "cpu")
    assert torch.equal(model.state_dict()[min(history[0])], made[min(history[0])])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["length=0.5"], "length=0.5 must lie in (0, 0.2887]"),
        (["length=0.1", "step=5"], "no snapshot of step 5: give one of 2, 4, 6, 8"),
        (["length=0.1", "snapshots=/nowhere"], "no snapshot of averages in /nowhere"),
        (["length=0.1", "ckpt=/nowhere.safetensors"], "no weight file /nowhere.safetensors"),
    ],
)
def test_a_mistake_is_one_sentence(trained, monkeypatch, capsys, words, sentence) -> None:
    folder, _ = trained
    given = {"ckpt": folder / "m.safetensors", "snapshots": folder / "ema", "out": folder / "b.safetensors"}
    given |= dict(word.split("=") for word in words)
    assert run(monkeypatch, ema.main, *(f"{k}={v}" for k, v in given.items())) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
