"""Refuse a model or a batch that cannot fit into this machine's memory, before any of it is allocated."""

import os

import torch
from omegaconf import DictConfig

from ldm.cli.config.instantiate import instantiate
from ldm.errors import UserError
from ldm.stages.base import Stage


def check_memory(cfg: DictConfig, world_size: int) -> None:
    """Raise UserError where the parameters, or one batch of images of one process, exceed the memory."""
    available = physical_memory()
    with torch.device("meta"):
        stage: Stage = instantiate(cfg.stage)
    values = sum(value.numel() for value in stage.state_dict().values())
    if 4 * values > available:
        raise UserError(
            f"the model has {values:,} weights, {4 * values / 1e9:,.0f} GB, but this machine has "
            f"{available / 1e9:,.0f} GB of memory: use smaller channels or fewer blocks in the denoiser, "
            "autoencoder and conditioner"
        )
    data = cfg.data
    batch = data.global_batch_size // world_size * data.size**2 * data.channels
    if batch > available:
        raise UserError(
            f"data.global_batch_size={data.global_batch_size} images of data.size={data.size} need "
            f"{batch / 1e9:,.0f} GB per process, but this machine has {available / 1e9:,.0f} GB of memory: "
            "lower one of them"
        )


def physical_memory() -> int:
    """Return the machine's memory in bytes; a large number where the system does not tell."""
    if not hasattr(os, "sysconf"):  # Windows
        return 2**62
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
