"""What a run is checked for before its first step: each mistake is one sentence."""

import math
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.func import functional_call

from ldm.cli.config.instantiate import instantiate
from ldm.cli.config.validate import existing, folder, whole
from ldm.cli.training import run_config
from ldm.conditioning.spatial import Mask
from ldm.data.datamodule import ShardDataModule
from ldm.data.fields.masks import MaskedImage
from ldm.data.shards.reader import find_shards, open_shards
from ldm.data.shards.remote import is_remote
from ldm.errors import UserError
from ldm.model import LatentDiffusion
from ldm.networks.autoencoder import Autoencoder
from ldm.stages import AutoencoderStage, LatentDiffusionStage
from ldm.stages.base import Stage

WHOLE = {
    "seed": 0,
    "trainer.max_steps": 1,
    "trainer.val_check_interval": 1,
    "trainer.num_nodes": 1,
    "data.global_batch_size": 1,
    "data.size": 1,
    "data.num_workers": 0,
    "data.val_batches": 1,
    "learning_rate.warmup_steps": 0,
    "stage.micro_batch_size": 0,
    "stage.log_every": 1,
    "stage.preview_steps": 1,
    "stage.statistics_batches": 1,
    "callbacks.checkpoint.every_n_steps": 1,
    "callbacks.checkpoint.keep": 0,
    "callbacks.checkpoint.milestone_every": 0,
    "callbacks.images.every_n_steps": 1,
    "callbacks.images.scale": 1,
}
"""The least value of whole numbers that nothing else checks before training."""
LEAST = {"stage.gradient_clip": 0, "optimizer.lr": 0}
"""As above, of numbers that need not be whole."""


def settings(cfg: DictConfig) -> None:
    """UserError for whatever can be seen to be wrong from the configuration alone."""
    if not cfg.name:
        raise UserError("name is empty: give the run a name, as in name=ldm_f8_text")
    numbers(cfg)
    precision(cfg)
    optimizer(cfg)
    if cfg.first_stage is not None and cfg.stage._target_.endswith(".AutoencoderStage"):
        raise UserError(
            f"first_stage={cfg.first_stage} is what stage 2 stands on, and {cfg.name} trains a first stage: "
            "leave it out, or start from its weights with init=FILE"
        )


def numbers(cfg: DictConfig) -> None:
    """UserError for a number that is not finite, not whole where it counts something, or below its least."""
    given = dict(run_config.flat(OmegaConf.to_container(cfg, resolve=True)))  # type: ignore[arg-type]
    for key, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key} must be a finite number, not {value}")
    for key, least in WHOLE.items():
        whole(key, given.get(key, least), least)
    for key, least in LEAST.items():
        value = given.get(key, least)
        if isinstance(value, int | float) and value < least:
            raise UserError(f"{key} must be {least} or more, not {value}")
    devices = cfg.trainer.devices
    if isinstance(devices, int) and devices < 1 and devices != -1:
        raise UserError(f"trainer.devices must be auto, or 1 or more, not {devices}")


def precision(cfg: DictConfig) -> None:
    """UserError for one that the stages cannot train in."""
    asked = str(cfg.trainer.precision)
    if asked.startswith("16"):
        why = "scales gradients, and the stages clip them as they are"
    elif asked.startswith("64") and torch.Tensor.float is not torch.Tensor.double:  # as the tests make it
        why = "mixes float64 with the float32 to which the stages convert images and latents"
    else:
        return
    raise UserError(f"trainer.precision={asked} {why}: give trainer.precision=bf16-mixed or 32-true")


def optimizer(cfg: DictConfig) -> None:
    """UserError where the optimizer refuses its settings; one number stands for the network's parameters."""
    factory = instantiate(cfg.stage.optimizer)
    try:
        factory([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"the optimizer refuses its settings (optimizer.*): {error}") from error


def folders(cfg: DictConfig) -> None:
    """UserError where the run's folder, or one that a logger or a callback was given, cannot be written."""
    for group in ("logger", "callbacks"):
        for name, node in cfg[group].items():
            for key in ("folder", "path"):
                if node is not None and node.get(key) is not None:
                    folder(node[key], f"{group}.{name}.{key}")


def shards(data: ShardDataModule) -> None:
    """What `data` checks by itself; a sentence about validation's shards names data.val_shards."""
    for spec in [data.val_shards] if isinstance(data.val_shards, str) else data.val_shards or []:
        if not is_remote(spec):
            try:
                find_shards(spec)
            except UserError as error:
                said = str(error).replace("data.shards", "data.val_shards")
                raise UserError(said) from error
    data.check()


def fits(stage: Stage, data: ShardDataModule) -> None:
    """UserError where images are not the model's, or a condition is not in the shards."""
    _channels(stage, data)
    if isinstance(stage, AutoencoderStage) and data.size % stage.model.downsampling:
        factor = stage.model.downsampling
        raise UserError(
            f"data.size={data.size} does not divide by the autoencoder's factor {factor}: "
            f"give data.size={max(data.size // factor, 1) * factor}, say"
        )
    if isinstance(stage, AutoencoderStage):
        _sizes(stage, data)
    if isinstance(stage, LatentDiffusionStage):
        stage.model.latent_shape(data.size, data.size)
        masks(stage.model, data.derived_fields_fields)
        conditioners = stage.model.conditioner.conditioners
        keys = {conditioner.key for conditioner in conditioners.values()}
        seen = [name for name, c in conditioners.items() if c.key == "image" and not c.through_first_stage]
        if seen and data.channels != 3:
            raise UserError(
                f"the condition {seen[0]} sees images in RGB and data.channels={data.channels}: give "
                "data.channels=3, or choose another conditioner=..."
            )
        shards = open_shards(data.shards)
        if "caption" in keys and len(shards[0]) and "txt" not in shards[0].sample(0).members:
            raise UserError(
                f"{shards.paths[0]} has no captions (.txt) and the model is conditioned on them: pack the "
                "images with captions, or choose another conditioner=..."
            )


def _channels(stage: Stage, data: ShardDataModule) -> None:
    """UserError where images are not what the first stage takes and gives, or what its loss can see."""
    first = stage.model.first_stage if isinstance(stage, LatentDiffusionStage) else stage.model
    assert isinstance(first, Autoencoder)
    taken = first.encoder.in_channels
    data.check_channels(taken)
    if isinstance(stage, AutoencoderStage):
        z = torch.empty(1, first.decoder.in_channels, 8, 8, device="meta")
        given = _on_meta(first.decoder, z).shape[1]
        if given != taken:  # a distance would spread the one over the other
            raise UserError(
                f"the first stage takes images of {taken} channels and gives {given}: give "
                f"autoencoder.decoder.out_channels={taken}"
            )
        stage.perceptual.check(taken)


def _sizes(stage: AutoencoderStage, data: ShardDataModule) -> None:
    """UserError where images, or what equivariance makes of them, are too small for a part of the loss."""
    factor, shrinking = stage.model.downsampling, stage.equivariance
    buckets = [] if data.order.buckets is None else data.order.buckets.shapes
    for height, width in [(data.size, data.size), *buckets]:
        h, w = height, width
        if shrinking is not None:
            h, w = (factor * shrinking.shrunk(side // factor) for side in (height, width))
        x = torch.empty(2, stage.model.encoder.in_channels, h, w, device="meta")
        parts: list[tuple[str, nn.Module, tuple[Tensor, ...]]] = [("perceptual", stage.perceptual, (x, x))]
        if stage.adversary is not None:
            parts.append(("adversary", stage.adversary.discriminator, (x,)))
        for group, network, given in parts:
            try:
                _on_meta(network, *given)
            except (RuntimeError, ValueError) as error:
                shrunk = f", to which equivariance shrinks those of {height}x{width}"
                smaller = (h, w) != (height, width)
                raise UserError(
                    f"{group} cannot take images of {h}x{w} ({' '.join(str(error).split())})"
                    f"{shrunk if smaller else ''}: raise {'equivariance.smallest or ' if smaller else ''}"
                    f"data.size, or choose another {group}=..."
                ) from error


def _on_meta(network: nn.Module, *given: Tensor) -> Tensor:
    """What it gives in shape alone, wherever its weights are."""
    named = (*network.named_parameters(), *network.named_buffers())
    return functional_call(network, {name: value.to("meta") for name, value in named}, given)


def masks(model: LatentDiffusion, derived_fields: Sequence[object]) -> None:
    """UserError where the number under the mask is not the mask's own: sample.py tells it by that."""
    lows = {c.background for c in model.conditioner.conditioners.values() if isinstance(c, Mask)}
    fills = {part.fill for part in derived_fields if isinstance(part, MaskedImage)}
    if lows and fills and lows != fills:
        low, fill = (", ".join(f"{x:g}" for x in sorted(found)) for found in (lows, fills))
        raise UserError(
            f"data.derived_fields puts {fill} under the mask, which is {low} where the image stays: give both 0 "
            "(Stable Diffusion) or both -1 (latent diffusion)"
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
            f"{path} is a model file, without optimizer and position: start from its weights with "
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
