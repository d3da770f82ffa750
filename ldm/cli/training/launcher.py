"""Detect what launched this process (torchrun, srun or a shell), and set the trainer's devices to match."""

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
from ldm.cli.device import trainer_device
from ldm.errors import UserError


@dataclass
class Launcher:
    """How many processes the launcher started, and on how many nodes."""

    program: str
    """torchrun or srun; Lightning where this process itself starts the others, if any."""
    tasks: int
    """Processes per node."""
    nodes: int
    environment: ClusterEnvironment

    def __str__(self) -> str:
        return f"{self.processes} process(es) on {self.nodes} node(s), started by {self.program}"

    @property
    def processes(self) -> int:
        """Processes on all nodes."""
        return self.tasks * self.nodes


def detect() -> Launcher:
    """Read the launcher from the environment; UserError in a SLURM job of several tasks without srun."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        tasks = int(env["LOCAL_WORLD_SIZE"])
        return Launcher("torchrun", tasks, int(env["WORLD_SIZE"]) // tasks, TorchElasticEnvironment())
    tasks = int(env.get("SLURM_NTASKS", 1))
    if tasks == 1 or env.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return Launcher("Lightning", 1, 1, LightningEnvironment())
    if "SLURM_STEP_ID" not in env:
        raise UserError(
            f"this SLURM job has {tasks} tasks, but srun did not start this process: use `srun "
            "python train.py ...` as in slurm/train.sbatch, or request --ntasks=1"
        )
    nodes = int(env["SLURM_NNODES"])
    if tasks % nodes:
        raise UserError(
            f"{tasks} tasks do not divide evenly over {nodes} nodes: use sbatch --ntasks-per-node"
        )
    env["SLURM_NTASKS_PER_NODE"] = str(tasks // nodes)  # Lightning needs it, srun --ntasks does not set it
    return Launcher("srun", tasks // nodes, nodes, SLURMEnvironment(auto_requeue=False))


def apply_launcher(settings: dict[str, Any], launch: Launcher) -> dict[str, Any]:
    """Return the trainer's settings with the launcher's devices and nodes; UserError if they contradict."""
    _check_gpus(settings, launch)
    return merge_devices(settings, launch)


def merge_devices(settings: dict[str, Any], launch: Launcher) -> dict[str, Any]:
    """Do the same as `apply_launcher` without checking this machine's GPUs."""
    if launch.processes == 1:
        return settings
    launched = {"devices": launch.tasks, "num_nodes": launch.nodes}
    for key, number in launched.items():
        if settings[key] not in ("auto", -1, 1, number):
            raise UserError(
                f"trainer.{key}={settings[key]}, but {launch.program} started {launch.tasks} processes on "
                f"each of {launch.nodes} nodes: remove trainer.{key}, or start as many processes"
            )
    return {**settings, **launched}


def _check_gpus(settings: dict[str, Any], launch: Launcher) -> None:
    """Raise UserError where the machine has fewer GPUs than the trainer or the launcher needs."""
    accelerator, visible = settings["accelerator"], torch.cuda.device_count()
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            "trainer.accelerator=mps, but PyTorch finds no Apple GPU on this machine: use trainer=auto"
        )
    needs_gpu = accelerator == "cuda" or (accelerator == "gpu" and trainer_device("gpu") != "mps")
    if needs_gpu and not visible:
        raise UserError(
            f"trainer.accelerator={accelerator}, but PyTorch finds no GPU on this machine: check "
            "`nvidia-smi`, install PyTorch with CUDA, or use trainer=cpu"
        )
    devices = settings["devices"]
    if needs_gpu and isinstance(devices, int) and devices > visible:
        raise UserError(
            f"trainer.devices={devices}, but this machine has {visible} GPU(s): use trainer.devices=auto"
        )
    if accelerator != "cpu" and 0 < visible < launch.tasks:
        raise UserError(
            f"{launch.program} started {launch.tasks} processes on this node, but each process has only "
            f"{visible} GPU(s): request --gpus-per-node from SLURM, not --gpus-per-task or --gpu-bind"
        )


def refuse_relaunch(trainer: Trainer) -> None:
    """Raise UserError for a sweep in a process that would start itself again once per GPU."""
    launcher = trainer.strategy.launcher
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if is_multirun() and launcher is not None and isinstance(environment, LightningEnvironment):
        raise UserError(
            f"-m runs its jobs in this process, and each of its {trainer.world_size} ranks would start the "
            "whole sweep: use trainer.devices=1, or hydra/launcher=slurm with hydra.launcher.tasks_per_node="
            f"{trainer.world_size}, so that srun starts the ranks of each job"
        )
