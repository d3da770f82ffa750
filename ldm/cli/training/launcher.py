"""Who started this process (torchrun, srun or a user's shell), and what the trainer is told of it."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from ldm.cli.config.command import is_multirun
from ldm.errors import UserError


@dataclass
class Launcher:
    """How many processes the program that started this one started, and where."""

    program: str
    """torchrun or srun; Lightning where this process starts the others, if any."""
    tasks: int
    """Processes a node."""
    nodes: int
    environment: ClusterEnvironment

    def __str__(self) -> str:
        total = self.tasks * self.nodes
        return f"{total} process(es) on {self.nodes} node(s), started by {self.program}"


def detect() -> Launcher:
    """What the environment says. UserError where SLURM gave several tasks and nothing started them."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        tasks = int(env["LOCAL_WORLD_SIZE"])
        return Launcher("torchrun", tasks, int(env["WORLD_SIZE"]) // tasks, TorchElasticEnvironment())
    tasks = int(env.get("SLURM_NTASKS", 1))
    if tasks == 1 or env.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return Launcher("Lightning", 1, 1, LightningEnvironment())
    if "SLURM_STEP_ID" not in env:
        raise UserError(
            f"this SLURM job has {tasks} tasks and nothing started them: write `srun python train.py ...`, "
            "as slurm/train.sbatch does, or ask for --ntasks=1"
        )
    nodes = int(env["SLURM_NNODES"])
    if tasks % nodes:
        raise UserError(f"{tasks} tasks do not spread over {nodes} nodes: give sbatch --ntasks-per-node")
    env["SLURM_NTASKS_PER_NODE"] = str(tasks // nodes)  # Lightning wants it, srun --ntasks does not set it
    return Launcher("srun", tasks // nodes, nodes, SLURMEnvironment(auto_requeue=False))


def apply_launcher(settings: dict[str, Any], launch: Launcher) -> dict[str, Any]:
    """The trainer's settings with as many devices as processes were started; UserError if they differ."""
    _check_gpus(settings, launch)
    return merge_devices(settings, launch)


def merge_devices(settings: dict[str, Any], launch: Launcher) -> dict[str, Any]:
    """`apply_launcher` without a look at this machine's GPUs."""
    if launch.tasks * launch.nodes == 1:
        return settings
    started = {"devices": launch.tasks, "num_nodes": launch.nodes}
    for key, number in started.items():
        if settings[key] not in ("auto", -1, 1, number):
            raise UserError(
                f"trainer.{key}={settings[key]}, but {launch.program} started {launch.tasks} processes on "
                f"each of {launch.nodes} nodes: leave trainer.{key} out, or start as many"
            )
    return {**settings, **started}


def _check_gpus(settings: dict[str, Any], launch: Launcher) -> None:
    visible = torch.cuda.device_count()
    if settings["accelerator"] in ("gpu", "cuda") and not visible:
        raise UserError(
            "the trainer wants a GPU and PyTorch sees none here: see what `nvidia-smi` says, install PyTorch "
            "for CUDA, or give trainer=cpu"
        )
    wanted = settings["devices"]
    if settings["accelerator"] in ("gpu", "cuda") and isinstance(wanted, int) and wanted > visible:
        raise UserError(f"trainer.devices={wanted}, but this machine has {visible} GPU(s): give devices=auto")
    if settings["accelerator"] != "cpu" and 0 < visible < launch.tasks:
        raise UserError(
            f"{launch.program} started {launch.tasks} processes on this node and each sees {visible} GPU(s): "
            "ask SLURM for --gpus-per-node, not --gpus-per-task or --gpu-bind"
        )


def refuse_relaunch(trainer: Trainer) -> None:
    """UserError for a sweep inside a process that would start itself again for each of its GPUs."""
    launcher = trainer.strategy.launcher
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if is_multirun() and launcher is not None and isinstance(environment, LightningEnvironment):
        raise UserError(
            f"-m runs its jobs in this process, its {trainer.world_size} ranks would each start the sweep: "
            "give trainer.devices=1, or hydra/launcher=slurm with hydra.launcher.tasks_per_node="
            f"{trainer.world_size}, where srun starts the ranks of each job"
        )
