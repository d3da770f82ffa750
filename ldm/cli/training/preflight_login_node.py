"""What can be checked of a training on a machine that will not train it, such as a login node."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from omegaconf import DictConfig, OmegaConf

from ldm.callbacks.checkpoint import checkpoints
from ldm.callbacks.loggers.wandb import WandbLogger
from ldm.cli.config.instantiate import instantiate
from ldm.cli.training import launcher, preflight, setup
from ldm.interop import model_file
from ldm.stages import LatentDiffusionStage


def check(cfg: DictConfig, tasks: int, nodes: int) -> None:
    """UserError for all that train.py on so many ranks would refuse, but for what only its machine can tell.

    Nothing is downloaded. Of the networks the first stage alone gets memory, for the latents name its hash.
    """
    preflight.settings(cfg)
    preflight.folder(cfg.run)
    preflight.folders(cfg)
    wanted: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    launcher.merge_devices(wanted, launcher.Launcher("srun", tasks, nodes, LightningEnvironment()))
    for made in [instantiate(node) for group in (cfg.logger, cfg.callbacks) for node in group.values()]:
        if isinstance(made, WandbLogger):
            made.check()
    data = instantiate(cfg.data)
    data.trainer = SimpleNamespace(global_rank=0, world_size=tasks * nodes)
    preflight.shards(data)
    with torch.device("meta"):
        stage = instantiate(cfg.stage)
    if stage.init is not None:
        model_file.read_header(stage.init, setup.kind(cfg))
    if isinstance(stage, LatentDiffusionStage):
        stage.model.first_stage.to_empty(device="cpu")
        stage.load_first_stage()
    setup.check_stage_and_data(stage, data, cfg)
    preflight.resumable(_begins(cfg), stage)


def _begins(cfg: DictConfig) -> Path | None:
    """Where the job will begin, not yet hashed: its script gives resume=auto before the user's own words."""
    if cfg.resume in (None, "auto"):
        return next((path for _, path in reversed(checkpoints(Path(cfg.run) / "checkpoints"))), None)
    return setup.checkpoint(cfg)
