"""What a run is checked for before its first step: each mistake is one sentence."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.data.module import ShardDataModule
from ldm.data.reader import open_shards
from ldm.errors import UserError
from ldm.stages import AutoencoderStage, LatentDiffusionStage
from ldm.stages.base import Stage

LEAST = {
    "trainer.max_steps": 1,
    "trainer.val_check_interval": 0,
    "data.global_batch_size": 1,
    "data.size": 1,
    "data.num_workers": 0,
    "data.val_batches": 1,
    "stage.micro_batch_size": 0,
    "stage.gradient_clip": 0,
    "stage.log_every": 1,
    "stage.preview_steps": 1,
    "stage.statistics_batches": 1,
    "callbacks.pictures.every_n_steps": 1,
    "callbacks.pictures.scale": 1,
    "optimizer.lr": 0,
}
"""The least value of numbers that nothing else checks before training."""


def numbers(cfg: DictConfig) -> None:
    """UserError for a number below its least, or a precision that the stages cannot train in."""
    for key, least in LEAST.items():
        value = OmegaConf.select(cfg, key)
        if isinstance(value, int | float) and value < least:
            raise UserError(f"{key} must be {least} or more, not {value}")
    if str(cfg.trainer.precision).startswith("16"):
        raise UserError(
            f"trainer.precision={cfg.trainer.precision} scales gradients, and the stages clip them as they "
            "are: give trainer.precision=bf16-mixed or 32-true"
        )


def folder(run: str) -> None:
    """UserError where the run's folder cannot be written."""
    place = existing(Path(run))
    if not place.is_dir():
        raise UserError(f"run={run} leads through {place}, which is a file: choose another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"run={run} cannot be made, {place} is not writable: choose another folder")


def existing(path: Path) -> Path:
    """The path itself, or the nearest one above it that there is."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def fits(stage: Stage, data: ShardDataModule) -> None:
    """UserError where pictures do not divide into latents, or a condition is not in the shards."""
    if isinstance(stage, AutoencoderStage) and data.size % stage.model.downsampling:
        factor = stage.model.downsampling
        raise UserError(
            f"data.size={data.size} does not divide by the autoencoder's factor {factor}: "
            f"give data.size={max(data.size // factor, 1) * factor}, say"
        )
    if isinstance(stage, LatentDiffusionStage):
        stage.model.latent_shape(data.size, data.size)
        keys = {conditioner.key for conditioner in stage.model.conditioner.conditioners.values()}
        shards = open_shards(data.shards)
        if "caption" in keys and len(shards[0]) and "txt" not in shards[0].sample(0).members:
            raise UserError(
                f"{shards.paths[0]} has no captions (.txt) and the model is conditioned on them: pack the "
                "pictures with captions, or choose another conditioner=..."
            )


def checkpoint_bytes(stage: Stage) -> int:
    """What one checkpoint takes: the state, and for each trained number two moments and an average."""
    state = sum(v.numel() * v.element_size() for v in stage.state_dict().values())
    return state + 12 * sum(p.numel() for p in stage.parameters() if p.requires_grad)


def space(cfg: DictConfig, stage: Stage) -> str:
    """What the run's files take and how much is free, in words; UserError where it is too little."""
    keep = cfg.callbacks.checkpoint.keep if cfg.callbacks.get("checkpoint") else 0
    one = checkpoint_bytes(stage)
    needed = (keep + 1) * one + sum(v.numel() * v.element_size() for v in stage.state_dict().values())
    place = existing(Path(cfg.run))
    free = shutil.disk_usage(place).free
    said = f"{keep} checkpoints and the next take {needed / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB free"
    if needed > free:
        fewer = " or callbacks.checkpoint.keep=2" if keep > 2 else ""
        raise UserError(f"{said}: free some, or choose another run=FOLDER{fewer}")
    return said


def resumable(path: Path | None, stage: Stage) -> None:
    """UserError unless `path` is a whole checkpoint of a stage with the same weights as this one."""
    if path is None:
        return
    saved = _read(path)
    ours = {name: value.shape for name, value in stage.state_dict().items()}
    theirs = {name: value.shape for name, value in saved["state_dict"].items()}
    odd = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
    if odd:
        raise UserError(
            f"{path} was trained with another configuration, {len(odd)} of {len(ours)} tensors differ, "
            f"{odd[0]} first: go on with the settings that it was begun with, or begin another run=FOLDER"
        )


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path} is a sampling file, without optimizer and position: start from its weights with "
            "init=..., and give resume=auto or a .ckpt to go on"
        )
    try:
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint, it is cut or another program's: give resume=OLDER.ckpt, "
            "or delete it and give resume=auto"
        ) from error
    if not isinstance(saved, dict) or not {"state_dict", "optimizer_states", "loops"} <= saved.keys():
        raise UserError(f"{path} is no checkpoint of train.py: give resume=auto or a .ckpt from runs/NAME")
    return saved
