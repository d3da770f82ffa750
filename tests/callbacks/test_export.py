"""The model file of a run."""

import pytest
import torch
from lightning import Callback

from ldm.callbacks.checkpoint import Checkpoint, list_checkpoints
from ldm.callbacks.ema import EMA
from ldm.callbacks.export import Export
from ldm.errors import Diverged
from ldm.interop import model_file
from tests.support import tiny

CONFIG = {"_target_": "ldm.model.LatentDiffusion", "numbers": [1, 2.5, None]}


def test_holds_averaged_weights_config_and_step(tmp_path):
    stage, ema, path = tiny.second_stage(), EMA(0.9), tmp_path / "out.safetensors"
    trainer = tiny.trainer(3, [ema, Export(str(path), CONFIG, "latent_diffusion", 10)])
    trainer.fit(stage, tiny.data(tmp_path / "shards", 3))
    tensors, config, header = model_file.load(path, "latent_diffusion")
    assert config == CONFIG and header["step"] == "3" and header["size"] == "16"
    for name, value in stage.model.state_dict().items():
        assert torch.equal(tensors[name], ema.averages.get(name, value)), name
    assert tiny.changed_names(stage.model, tensors) == set(ema.averages), (
        "the run itself continues with its own weights"
    )


def test_stage_1_adds_the_latent_statistics(tmp_path):
    stage, ema, path = tiny.first_stage(), EMA(0.9), tmp_path / "out.safetensors"
    data = tiny.data(tmp_path / "shards", 3)
    tiny.trainer(3, [ema, Export(str(path), CONFIG, "autoencoder", 10)]).fit(stage, data)
    tensors, _, _ = model_file.load(path, "autoencoder")
    with ema.use_averages(stage):
        stage.on_export(data)
    assert torch.equal(tensors["latent_mean"], stage.model.latent_mean)
    assert torch.equal(tensors["latent_std"], stage.model.latent_std)
    assert not torch.equal(tensors["latent_std"], torch.ones(4))


def test_weights_that_are_not_finite_end_the_run_before_its_checkpoint(tmp_path):
    """At the first model file; the older checkpoint stays the newest."""
    stage, path = tiny.second_stage(), tmp_path / "out.safetensors"

    class Ruin(Callback):
        def on_train_batch_end(self, trainer, stage, *_) -> None:
            if trainer.global_step == 3:
                stage.model.denoiser.conv_out.bias.data[1] = float("inf")

    callbacks = [Ruin(), Export(str(path), CONFIG, "latent_diffusion", 2), Checkpoint(str(tmp_path), 2)]
    with pytest.raises(Diverged, match=r"not finite at step 4 \(the first is denoiser.*\): .*run=FOLDER"):
        tiny.trainer(6, callbacks).fit(stage, tiny.data(tmp_path / "shards", 6))
    assert model_file.load(path, "latent_diffusion")[2]["step"] == "2"
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2]


def test_latents_that_are_not_finite_end_the_run(tmp_path):
    stage = tiny.first_stage()
    torch.nn.init.constant_(stage.model.encoder.conv_in.weight, 1e38)
    with pytest.raises(Diverged, match="latents are not finite at step 0: .*resume=PATH run=FOLDER"):
        stage.on_export(tiny.data(tmp_path / "shards", 3))
    assert torch.equal(stage.model.latent_std, torch.ones(4)), "the statistics are kept"


def test_written_during_training_too(tmp_path):
    path, steps = tmp_path / "out.safetensors", []
    stage = tiny.second_stage()

    def read_step(*_) -> None:
        steps.append(model_file.load(path, "latent_diffusion")[2]["step"] if path.exists() else None)

    stage.on_train_batch_end = read_step
    trainer = tiny.trainer(5, [Export(str(path), CONFIG, "latent_diffusion", 2)])
    trainer.fit(stage, tiny.data(tmp_path / "shards", 5))
    assert steps == [None, "2", "2", "4", "4"]
    assert model_file.load(path, "latent_diffusion")[2]["step"] == "5"
