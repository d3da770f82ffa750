"""The checkpoint to resume, the trainer with its callbacks, and the summary of a run."""

import resource

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from ldm.callbacks.checkpoint import Checkpoint
from ldm.callbacks.ema import EMA
from ldm.callbacks.export import Export
from ldm.cli.config.compose import compose
from ldm.cli.training import setup
from ldm.errors import UserError
from tests.support import tiny


def config(*words: str):
    return compose("train", ["experiment=debug/ae", "data.shards=shards", *words])


def test_a_folder_with_the_checkpoints_of_another_run_is_refused(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert setup.find_checkpoint(config(f"run={tmp_path}")) is None
    (folder / "step00000003.ckpt").touch()
    with pytest.raises(UserError, match=rf"{tmp_path} already holds checkpoints: .* resume=auto"):
        setup.find_checkpoint(config(f"run={tmp_path}"))


def test_resume_names_a_checkpoint(tmp_path):
    assert setup.find_checkpoint(config(f"run={tmp_path}")) is None
    assert setup.find_checkpoint(config(f"run={tmp_path}", "resume=auto")) is None, "starts at step 0"
    (tmp_path / "checkpoints").mkdir()
    for step in (8, 12):
        (tmp_path / "checkpoints" / f"step{step:08d}.ckpt").touch()
    assert setup.find_checkpoint(config(f"run={tmp_path}", "resume=auto")).name == "step00000012.ckpt"
    older = tmp_path / "checkpoints" / "step00000008.ckpt"
    assert setup.find_checkpoint(config(f"run={tmp_path}", f"resume={older}")) == older
    with pytest.raises(UserError, match=r"no checkpoint /nowhere\.ckpt: .*resume=auto"):
        setup.find_checkpoint(config("resume=/nowhere.ckpt"))


def test_the_trainer_has_the_runs_callbacks(tmp_path):
    trainer = setup.build_trainer(config(f"run={tmp_path}"))
    kinds = [type(callback) for callback in trainer.callbacks]
    assert kinds.index(EMA) < kinds.index(Export) < kinds.index(Checkpoint) == len(kinds) - 1
    export = next(c for c in trainer.callbacks if isinstance(c, Export))
    assert export.path == tmp_path / "autoencoder.safetensors" and export.kind == "autoencoder"
    assert export.every_n_steps == 4 and export.config["_target_"] == "ldm.networks.autoencoder.Autoencoder"
    assert trainer.logger.path == tmp_path / "metrics.csv" and trainer.max_steps == 8


def test_null_disables_a_callback(tmp_path):
    trainer = setup.build_trainer(config(f"run={tmp_path}", "~callbacks.checkpoint", "callbacks.ema=null"))
    kinds = [type(callback) for callback in trainer.callbacks]
    assert Checkpoint not in kinds and EMA not in kinds and Export in kinds


@pytest.mark.parametrize(("name", "strategy"), [("gpu", SingleDeviceStrategy), ("ddp", DDPStrategy)])
def test_one_gpu_is_one_process_and_ddp_allows_two_optimizers(tmp_path, name, strategy):
    """On the CPU, for a machine without a GPU."""
    words = ["experiment=ae_kl_f8", "data.shards=shards", f"run={tmp_path}", f"trainer={name}"]
    cfg = compose("train", words)
    assert (cfg.trainer.accelerator, cfg.trainer.devices) == ("gpu", 1 if name == "gpu" else "auto")
    on_cpu = compose("train", [*words, "trainer.accelerator=cpu", "trainer.devices=1"])
    trainer = setup.build_trainer(on_cpu)
    assert type(trainer.strategy) is strategy and trainer.world_size == 1
    if isinstance(trainer.strategy, DDPStrategy):
        assert trainer.strategy._ddp_kwargs["find_unused_parameters"] is True


def test_the_limit_on_open_files_is_raised(monkeypatch):
    limits_set = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: limits_set.append(limits))
    for limits in ((1024, 1 << 20), (256, 1024), (1 << 16, 1 << 20), (-1, -1), (1024, -1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, current=limits: current)
        setup.raise_open_files_limit()
    assert limits_set == [(4096, 1 << 20), (1024, 1024), (4096, -1)]


def test_stage_2_has_its_own_model_file():
    cfg = compose("train", ["experiment=debug/text", "data.shards=shards"])
    assert setup.model_file_path(cfg).as_posix() == "runs/debug_text/latent_diffusion.safetensors"


def test_the_default_precision_is_native_to_the_device(monkeypatch):
    for native, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda n=native: n)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert setup.default_precision("cpu") == expected
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, n=native: not n)
        assert setup.default_precision("auto") == ("32-true" if native else "bf16-mixed")
        assert setup.default_precision("cpu") == expected
        monkeypatch.undo()


def test_the_summary_of_a_run(tmp_path, capsys):
    cfg, stage = config(f"run={tmp_path}"), tiny.first_stage(decoder_only=True)
    setup.print_summary(cfg, setup.build_trainer(cfg), stage)
    out = capsys.readouterr().out
    trained = sum(p.numel() for p in stage.model.decoder.parameters())
    total = sum(p.numel() for p in stage.model.parameters())
    assert f"debug_ae: {trained:,} trained parameters of {total:,}" in out
    assert "batch size 4 over 1 process(es), 8 steps, learning rate 1e-4 (never rescaled" in out
    assert str(tmp_path) in out
