"""What can be checked of a training on a machine that will not train it, such as a login node."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from omegaconf import DictConfig, OmegaConf

from ldm.callbacks.checkpoint import checkpoints
from ldm.callbacks.wandb_log import WandbLog
from ldm.cli import checks, launch, training
from ldm.cli.build import build
from ldm.interop import safetensors
from ldm.stages import LatentDiffusionStage


def check(cfg: DictConfig, tasks: int, nodes: int) -> None:
    """UserError for all that train.py on so many ranks would refuse, but for what only its machine can tell.

    Nothing is downloaded. Of the networks the first stage alone gets memory, for the latents name its hash.
    """
    checks.settings(cfg)
    checks.folder(cfg.run)
    checks.folders(cfg)
    wanted: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    launch.agreed(wanted, launch.Launch("srun", tasks, nodes, LightningEnvironment()))
    for made in [build(node) for group in (cfg.logger, cfg.callbacks) for node in group.values()]:
        if isinstance(made, WandbLog):
            made.check()
    data = build(cfg.data)
    data.trainer = SimpleNamespace(global_rank=0, world_size=tasks * nodes)
    checks.shards(data)
    with torch.device("meta"):
        stage = build(cfg.stage)
    if stage.init is not None:
        safetensors.read_header(stage.init, training.kind(cfg))
    if isinstance(stage, LatentDiffusionStage):
        stage.model.first_stage.to_empty(device="cpu")
        stage.load_first_stage()
    training.match(stage, data, cfg)
    checks.resumable(_begins(cfg), stage)


def _begins(cfg: DictConfig) -> Path | None:
    """Where the job will begin, not yet hashed: its script gives resume=auto before the user's own words."""
    if cfg.resume in (None, "auto"):
        return next((path for _, path in reversed(checkpoints(Path(cfg.run) / "checkpoints"))), None)
    return training.checkpoint(cfg)
