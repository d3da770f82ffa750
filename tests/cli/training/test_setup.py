"""What train.py checks, builds and says."""

import resource

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from ldm.callbacks.checkpoint import Checkpoint
from ldm.callbacks.ema import EMA
from ldm.callbacks.export import Export
from ldm.cli.config.compose import compose
from ldm.cli.training import preflight, setup
from ldm.errors import UserError
from tests.support import tiny


def config(*words: str):
    return compose("train", ["experiment=debug/ae", "data.shards=shards", *words])


def test_a_run_that_another_filled_is_refused(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert setup.checkpoint(config(f"run={tmp_path}")) is None
    (folder / "step00000003.ckpt").touch()
    with pytest.raises(UserError, match=rf"{tmp_path} already holds checkpoints: .* resume=auto"):
        setup.checkpoint(config(f"run={tmp_path}"))


def test_resume_names_a_checkpoint(tmp_path):
    assert setup.checkpoint(config(f"run={tmp_path}")) is None
    assert setup.checkpoint(config(f"run={tmp_path}", "resume=auto")) is None, "starts afresh"
    (tmp_path / "checkpoints").mkdir()
    for step in (8, 12):
        (tmp_path / "checkpoints" / f"step{step:08d}.ckpt").touch()
    assert setup.checkpoint(config(f"run={tmp_path}", "resume=auto")).name == "step00000012.ckpt"
    older = tmp_path / "checkpoints" / "step00000008.ckpt"
    assert setup.checkpoint(config(f"run={tmp_path}", f"resume={older}")) == older
    with pytest.raises(UserError, match=r"no checkpoint /nowhere\.ckpt: give resume=auto"):
        setup.checkpoint(config("resume=/nowhere.ckpt"))


def test_the_trainer_has_this_runs_callbacks(tmp_path):
    made = setup.trainer(config(f"run={tmp_path}"))
    kinds = [type(callback) for callback in made.callbacks]
    assert kinds.index(EMA) < kinds.index(Export) < kinds.index(Checkpoint) == len(kinds) - 1
    saver = next(c for c in made.callbacks if isinstance(c, Export))
    assert saver.path == tmp_path / "autoencoder.safetensors" and saver.kind == "autoencoder"
    assert saver.every_n_steps == 4 and saver.config["_target_"] == "ldm.networks.autoencoder.Autoencoder"
    assert made.logger.path == tmp_path / "metrics.csv" and made.max_steps == 8


def test_null_switches_a_callback_off(tmp_path):
    made = setup.trainer(config(f"run={tmp_path}", "~callbacks.checkpoint", "callbacks.ema=null"))
    kinds = [type(callback) for callback in made.callbacks]
    assert Checkpoint not in kinds and EMA not in kinds and Export in kinds


@pytest.mark.parametrize(("name", "strategy"), [("gpu", SingleDeviceStrategy), ("ddp", DDPStrategy)])
def test_one_gpu_is_one_process_and_ddp_bears_two_optimizers(tmp_path, name, strategy):
    """On the CPU, for a machine without a GPU."""
    words = ["experiment=ae_kl_f8", "data.shards=shards", f"run={tmp_path}", f"trainer={name}"]
    cfg = compose("train", words)
    assert (cfg.trainer.accelerator, cfg.trainer.devices) == ("gpu", 1 if name == "gpu" else "auto")
    made = setup.trainer(compose("train", [*words, "trainer.accelerator=cpu", "trainer.devices=1"]))
    assert type(made.strategy) is strategy and made.world_size == 1
    if isinstance(made.strategy, DDPStrategy):
        assert made.strategy._ddp_kwargs["find_unused_parameters"] is True


def test_more_files_may_be_opened(monkeypatch):
    found = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: found.append(limits))
    for limits in ((1024, 1 << 20), (256, 1024), (1 << 16, 1 << 20), (-1, -1), (1024, -1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, now=limits: now)
        setup.raise_open_files_limit()
    assert found == [(4096, 1 << 20), (1024, 1024), (4096, -1)]


def test_stage_2_has_its_own_file():
    cfg = compose("train", ["experiment=debug/text", "data.shards=shards"])
    assert setup.model_file_path(cfg).as_posix() == "runs/debug_text/latent_diffusion.safetensors"


def test_precision_is_what_the_device_computes_in(monkeypatch):
    for native, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda n=native: n)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert setup.precision("cpu") == expected
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, n=native: not n)
        assert setup.precision("auto") == ("32-true" if native else "bf16-mixed")
        assert setup.precision("cpu") == expected
        monkeypatch.undo()


@pytest.mark.parametrize("name", ["16-mixed", "16-true", "16"])
def test_half_precision_with_scaled_gradients_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=rf"trainer\.precision={name} .* give trainer\.precision=bf16-mixed"):
        preflight.settings(config(f"run={tmp_path}", f"trainer.precision={name}"))


def test_says_what_is_about_to_happen(tmp_path, capsys):
    cfg, stage = config(f"run={tmp_path}"), tiny.first_stage(decoder_only=True)
    setup.print_summary(cfg, setup.trainer(cfg), stage)
    out = capsys.readouterr().out
    trained = sum(p.numel() for p in stage.model.decoder.parameters())
    assert (
        f"debug_ae: {trained:,} trained parameters of {sum(p.numel() for p in stage.model.parameters()):,}"
        in out
    )
    assert "batch 4 over 1 process(es), 8 steps, rate 0.0001 (never rescaled)" in out and str(tmp_path) in out
