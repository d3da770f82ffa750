"""The checkpoint to resume, the trainer with its callbacks, and the summary of a run."""

import resource

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from ldm.callbacks.checkpoint import Checkpoint
from ldm.callbacks.ema import EMA
from ldm.callbacks.export import Export
from ldm.callbacks.posthoc_ema import PostHocEMA
from ldm.callbacks.preemption import Preemption
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
    newest, elsewhere = tmp_path / "checkpoints" / "step00000012.ckpt", tmp_path / "best.ckpt"
    assert setup.find_checkpoint(config(f"run={tmp_path}", f"resume={newest}")) == newest
    elsewhere.touch()
    assert setup.find_checkpoint(config(f"run={tmp_path}/new", f"resume={elsewhere}")) == elsewhere
    with pytest.raises(UserError, match=r"no checkpoint /nowhere\.ckpt: .*resume=auto"):
        setup.find_checkpoint(config("resume=/nowhere.ckpt"))


@pytest.mark.parametrize("name", ["run/checkpoints/step00000008.ckpt", "best.ckpt"])
def test_checkpoints_that_resume_auto_would_prefer_are_in_the_way(tmp_path, monkeypatch, name):
    folder, run = tmp_path / "run" / "checkpoints", f"run={tmp_path / 'run'}"
    folder.mkdir(parents=True)
    for path in (folder / "step00000008.ckpt", folder / "step00000012.ckpt", tmp_path / "best.ckpt"):
        path.touch()
    with pytest.raises(UserError, match=rf"do not come before \S*{name}, such as step00000012.ckpt: .*run=F"):
        setup.find_checkpoint(config(run, f"resume={tmp_path / name}"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # the same command in a requeued job
    assert setup.find_checkpoint(config(run, f"resume={tmp_path / name}")) == folder / "step00000012.ckpt"
    new = config(f"run={tmp_path / 'new'}", f"resume={tmp_path / name}")
    assert setup.find_checkpoint(new) == tmp_path / name, "it was requeued before its first checkpoint"


def test_the_trainer_has_the_runs_callbacks(tmp_path):
    trainer = setup.build_trainer(config(f"run={tmp_path}"))
    kinds = [type(callback) for callback in trainer.callbacks]
    assert kinds.index(EMA) < kinds.index(Export) < kinds.index(Checkpoint) == len(kinds) - 1
    export = next(c for c in trainer.callbacks if isinstance(c, Export))
    assert export.path == tmp_path / "autoencoder.safetensors" and export.kind == "autoencoder"
    assert export.every_n_steps == 4 and export.config["_target_"] == "ldm.networks.autoencoder.Autoencoder"
    assert trainer.logger.path == tmp_path / "metrics.csv" and trainer.max_steps == 8


def test_a_checkpoint_after_a_signal_has_the_averages_of_its_step():
    cfg = config("callbacks=post_hoc", "callbacks.post_hoc.every_n_steps=2")
    kinds = [type(callback) for callback in setup.build_callbacks(cfg)]
    assert kinds[-2:] == [Preemption, Checkpoint] and {PostHocEMA, EMA, Export} <= {*kinds[:-2]}


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


def test_fp16_on_a_cpu_is_not_replaced_by_bf16(tmp_path):
    for name in ("16-mixed", "16"):
        trainer = setup.build_trainer(config(f"run={tmp_path}", f"trainer.precision={name}"))
        assert trainer.precision == "16-mixed"
        with trainer.precision_plugin.forward_context():
            assert torch.get_autocast_dtype("cpu") == torch.float16 and torch.is_autocast_enabled("cpu")


def test_the_summary_of_a_run(tmp_path, capsys):
    cfg, stage = config(f"run={tmp_path}"), tiny.first_stage(decoder_only=True)
    setup.print_summary(cfg, setup.build_trainer(cfg), stage)
    out = capsys.readouterr().out
    trained = sum(p.numel() for p in stage.model.decoder.parameters())
    total = sum(p.numel() for p in stage.model.parameters())
    assert f"debug_ae: {trained:,} trained parameters of {total:,}" in out
    assert "batch size 4 over 1 process(es), 8 steps, learning rate 1e-4 (never rescaled" in out
    assert str(tmp_path) in out
