"""The launcher of a training: torchrun, srun or a shell."""

import pytest
import torch
from lightning.fabric.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.utilities import rank_zero_only

from ldm.cli.config.compose import compose
from ldm.cli.training import launcher, setup
from ldm.errors import UserError

SETTINGS = {"accelerator": "cpu", "devices": 1, "num_nodes": 1}
SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
SRUN |= {"SLURM_NODEID": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def env(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_STEP_ID", "SLURM_JOB_NAME", "SLURM_NNODES"):
        monkeypatch.delenv(name, raising=False)

    def set_environment(**values: object) -> None:
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "")  # so that it is restored after the test
        monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return set_environment


def test_a_shell(env):
    env()
    launch = launcher.detect()
    assert isinstance(launch.environment, LightningEnvironment) and (launch.tasks, launch.nodes) == (1, 1)
    assert launcher.apply_launcher(SETTINGS, launch) == SETTINGS


def test_torchrun(env):
    env(TORCHELASTIC_RUN_ID="x", LOCAL_WORLD_SIZE=4, WORLD_SIZE=8, SLURM_NTASKS=2)
    launch = launcher.detect()
    assert isinstance(launch.environment, TorchElasticEnvironment) and (launch.tasks, launch.nodes) == (4, 2)
    assert launcher.apply_launcher(SETTINGS, launch) == {**SETTINGS, "devices": 4, "num_nodes": 2}
    assert str(launch) == "8 process(es) on 2 node(s), started by torchrun"


def test_srun(env):
    env(SLURM_NTASKS=4, SLURM_NNODES=2, **SRUN)
    launch = launcher.detect()
    assert isinstance(launch.environment, SLURMEnvironment) and not launch.environment.auto_requeue
    assert (launch.tasks, launch.nodes) == (2, 2)


def test_a_job_of_one_task_starts_its_own_ranks(env):
    env(SLURM_NTASKS=1, SLURM_NNODES=1, **SRUN)
    assert isinstance(launcher.detect().environment, LightningEnvironment)


def test_several_tasks_without_srun(env):
    env(SLURM_NTASKS=4, SLURM_NNODES=1)
    with pytest.raises(UserError, match="4 tasks.*: use `srun python train.py"):
        launcher.detect()
    env(SLURM_JOB_NAME="interactive")
    assert launcher.detect().tasks == 1, "a shell inside an allocation is for interactive use"


def test_tasks_that_do_not_divide_over_the_nodes(env):
    env(SLURM_NTASKS=3, SLURM_NNODES=2, **SRUN)
    with pytest.raises(UserError, match="3 tasks .* 2 nodes: .*--ntasks-per-node"):
        launcher.detect()


def test_settings_that_contradict_the_launcher(env):
    env(TORCHELASTIC_RUN_ID="x", LOCAL_WORLD_SIZE=2, WORLD_SIZE=2)
    assert launcher.apply_launcher({**SETTINGS, "devices": "auto"}, launcher.detect())["devices"] == 2
    with pytest.raises(UserError, match="trainer.devices=3, but torchrun started 2 processes"):
        launcher.apply_launcher({**SETTINGS, "devices": 3}, launcher.detect())


@pytest.mark.parametrize(
    ("visible", "settings", "message"),
    [
        (0, {"accelerator": "gpu"}, "trainer.accelerator=gpu, .* no GPU .* trainer=cpu"),
        (2, {"accelerator": "gpu", "devices": 4}, "trainer.devices=4, .* 2 GPU.*trainer.devices=auto"),
        (1, {"accelerator": "auto", "devices": "auto"}, "1 GPU.*--gpus-per-node .*not --gpus-per-task"),
    ],
)
def test_gpus_that_are_missing(env, monkeypatch, visible, settings, message):
    env(TORCHELASTIC_RUN_ID="x", LOCAL_WORLD_SIZE=2, WORLD_SIZE=2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    with pytest.raises(UserError, match=message):
        launcher.apply_launcher({**SETTINGS, **settings}, launcher.detect())


def test_ddp_keeps_its_buckets_and_has_the_launchers_ranks(env, tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # the trainer sets it for the whole process
    env(SLURM_NTASKS=2, SLURM_NNODES=1, **SRUN | {"SLURM_NODEID": "0", "SLURM_PROCID": "1"})
    cfg = compose("train", ["experiment=debug/ae", "data.shards=shards", f"run={tmp_path}"])
    trainer = setup.build_trainer(cfg)
    assert trainer.strategy._ddp_kwargs["find_unused_parameters"] is True
    assert (trainer.world_size, trainer.global_rank, trainer.is_global_zero) == (2, 1, False)
