"""Checks that need the built stage: whether its shards, image sizes, disk space and checkpoint fit."""

import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.func import functional_call

from ldm.cli.config.validate import nearest_existing_path
from ldm.conditioning.base import Conditioner
from ldm.conditioning.spatial import Mask
from ldm.conditioning.text import FrozenTextEncoder, cached_encoder, encoder_identity
from ldm.data.datamodule import ShardDataModule
from ldm.data.fields.masks import MaskedImage
from ldm.errors import UserError
from ldm.model import LatentDiffusion
from ldm.networks.autoencoder import Autoencoder
from ldm.stages import AutoencoderStage, LatentDiffusionStage
from ldm.stages.base import Stage


def check_model_and_data(stage: Stage, data: ShardDataModule, max_steps: int) -> None:
    """Raise UserError where the data do not fit the model, or the stage does not fit the number of steps."""
    _check_channels(stage, data)
    if isinstance(stage, AutoencoderStage):
        factor = stage.model.downsampling
        if data.size % factor:
            raise UserError(
                f"data.size={data.size} is not divisible by the autoencoder's downsampling factor {factor}: "
                f"use e.g. data.size={max(data.size // factor, 1) * factor}"
            )
        _check_image_sizes(stage, data)
        stage.check_steps(max_steps)
        if data.header(data.shards) is not None:
            raise UserError(
                f"{data.shards} holds latents, but stage 1 trains on images: set data.shards to image shards"
            )
    if isinstance(stage, LatentDiffusionStage):
        stage.model.latent_shape(data.size, data.size)
        check_masks(stage.model, data.derived_fields)
        _check_conditions(stage.model, data)
        _check_cached_text(stage.model, data)
        data.check_latents(stage.first_stage_hash())


def _check_channels(stage: Stage, data: ShardDataModule) -> None:
    """Raise UserError unless encoder, decoder, perceptual distance and data agree on the image channels."""
    autoencoder = stage.model.first_stage if isinstance(stage, LatentDiffusionStage) else stage.model
    assert isinstance(autoencoder, Autoencoder)
    channels = autoencoder.encoder.in_channels
    data.check_channels(channels)
    if isinstance(stage, AutoencoderStage):
        z = torch.empty(1, autoencoder.decoder.in_channels, 8, 8, device="meta")
        decoded = _forward_on_meta(autoencoder.decoder, z).shape[1]
        if decoded != channels:  # a distance would broadcast one against the other
            raise UserError(
                f"the autoencoder encodes images of {channels} channels but decodes {decoded}: "
                f"set autoencoder.decoder.out_channels={channels}"
            )
        stage.perceptual.check(channels)


def _check_image_sizes(stage: AutoencoderStage, data: ShardDataModule) -> None:
    """Raise UserError where images, also as shrunk by equivariance, are too small for a part of the loss."""
    factor, equivariance = stage.model.downsampling, stage.equivariance
    buckets = [] if data.order.buckets is None else data.order.buckets.shapes
    for height, width in [(data.size, data.size), *buckets]:
        h, w = height, width
        if equivariance is not None:
            h, w = (factor * equivariance.scale_length(length // factor) for length in (height, width))
        x = torch.empty(2, stage.model.encoder.in_channels, h, w, device="meta")
        parts: list[tuple[str, nn.Module, tuple[Tensor, ...]]] = [("perceptual", stage.perceptual, (x, x))]
        if stage.adversary is not None:
            parts.append(("adversary", stage.adversary.discriminator, (x,)))
        for group, network, inputs in parts:
            try:
                _forward_on_meta(network, *inputs)
            except (RuntimeError, ValueError) as error:
                is_shrunk = (h, w) != (height, width)
                shrunk = (
                    f", the size to which equivariance shrinks {height}x{width} images" if is_shrunk else ""
                )
                raise UserError(
                    f"{group} does not support images of {h}x{w}{shrunk} ({' '.join(str(error).split())}): "
                    f"raise {'equivariance.smallest or ' if is_shrunk else ''}data.size, or choose another "
                    f"{group}=..."
                ) from error


def _forward_on_meta(network: nn.Module, *inputs: Tensor) -> Tensor:
    """Return the output as a meta tensor, with a shape but no values, wherever the weights are."""
    state = (*network.named_parameters(), *network.named_buffers())
    output: Tensor = functional_call(network, {name: value.to("meta") for name, value in state}, inputs)
    return output


def _check_conditions(model: LatentDiffusion, data: ShardDataModule) -> None:
    """Raise UserError where an image encoder does not get RGB, or the shards lack the captions."""
    captioned = False
    for name, conditioner in model.conditioner.conditioners.items():
        assert isinstance(conditioner, Conditioner)
        captioned |= conditioner.batch_key == "caption"
        needs_rgb = conditioner.batch_key == "image" and not conditioner.needs_first_stage
        if needs_rgb and data.channels != 3:
            raise UserError(
                f"the condition {name!r} needs RGB images, but data.channels={data.channels}: use "
                "data.channels=3, or choose another conditioner=..."
            )
    if captioned:
        data.check_captions()


def _check_cached_text(model: LatentDiffusion, data: ShardDataModule) -> None:
    """Raise UserError where the cached states of captions are not those that the text encoder would give."""
    header = data.header(data.shards)
    parts = model.conditioner.conditioners.values()
    if header is None or not header.text or not any(isinstance(part, FrozenTextEncoder) for part in parts):
        return
    encoder = cached_encoder(model.conditioner)
    shape = None if encoder is None else tuple(encoder.null(1).context.shape[1:])  # type: ignore[union-attr]
    sources = [*(data.captions or {"txt": 1.0})]
    stored = {"text encoder": (header.text, encoder_identity(model.conditioner)),
              "number of tokens and channels": (header.text_shape, shape),
              "caption": ([header.caption], sources)}  # fmt: skip
    for what, (cached, wanted) in stored.items():
        if encoder is None or cached != wanted:
            raise UserError(
                f"{data.shards} holds cached states of captions with another {what} than this model's "
                f"({cached}, not {wanted}): encode the latents again with the model's conditioner=... and "
                "caption=..., or without a conditioner"
            )


def check_masks(model: LatentDiffusion, derived_fields: Sequence[object]) -> None:
    """Raise UserError unless masked pixels are filled with the mask's background, as sample.py assumes."""
    conditioners = model.conditioner.conditioners.values()
    backgrounds = {c.background for c in conditioners if isinstance(c, Mask)}
    fills = {field.fill for field in derived_fields if isinstance(field, MaskedImage)}
    if backgrounds and fills and backgrounds != fills:
        fill, background = (", ".join(f"{x:g}" for x in sorted(values)) for values in (fills, backgrounds))
        raise UserError(
            f"data.derived_fields fills masked pixels with {fill}, but the mask is {background} where the "
            "image is kept: use 0 for both (Stable Diffusion) or -1 for both (latent diffusion)"
        )


def checkpoint_bytes(stage: Stage) -> int:
    """Return the size of a checkpoint: the state, and per trained number two moments and an average."""
    return _state_bytes(stage) + 12 * sum(p.numel() for p in stage.parameters() if p.requires_grad)


def _state_bytes(stage: Stage) -> int:
    return sum(v.numel() * v.element_size() for v in stage.state_dict().values())


def check_disk_space(cfg: DictConfig, stage: Stage) -> str:
    """Return the size of the run's files and the free space; UserError if they do not fit."""
    keep = cfg.callbacks.checkpoint.keep if cfg.callbacks.get("checkpoint") else 0
    needed = (keep + 1) * checkpoint_bytes(stage) + _state_bytes(stage)
    folder = nearest_existing_path(Path(cfg.run))
    free = shutil.disk_usage(folder).free
    text = (
        f"{keep} checkpoints, the next one and the model file need {needed / 1e9:.1f} GB, and "
        f"{folder} has {free / 1e9:.1f} GB free"
    )
    if needed > free:
        fewer = ", or set callbacks.checkpoint.keep=2" if keep > 2 else ""
        raise UserError(f"{text}: free some space, or choose another run=FOLDER{fewer}")
    return text


def check_checkpoint(checkpoint: Mapping[str, Any], path: Path, stage: Stage) -> None:
    """Raise UserError unless the checkpoint is of a stage with these tensors, on the same first stage."""
    expected = {name: value.shape for name, value in stage.state_dict().items()}
    stored = {name: value.shape for name, value in checkpoint["state_dict"].items()}
    different = sorted(n for n in expected.keys() | stored.keys() if expected.get(n) != stored.get(n))
    if different:
        total = len(expected.keys() | stored.keys())
        raise UserError(
            f"{path} is from a run with another config ({len(different)} of {total} tensors differ, the "
            f"first is {different[0]}): resume with the settings of that run, or start a new run=FOLDER"
        )
    if isinstance(stage, LatentDiffusionStage):
        for name, value in stage.model.first_stage.state_dict().items():
            saved = checkpoint["state_dict"][f"model.first_stage.{name}"]
            if not torch.equal(saved.to(value.dtype), value):
                raise UserError(
                    f"first_stage={stage.first_stage_weights} differs from the first stage in {path}, which "
                    "a resumed run keeps: give the file of that run, or start a new run=FOLDER"
                )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint, its tensors in the file until they are used; UserError for other files."""
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path} is a model file, without the optimizer's state: start from its weights with init=..., "
            "or resume from a .ckpt or with resume=auto"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint (truncated, or another kind of file): delete it and use "
            "resume=auto, or choose another checkpoint with resume=PATH"
        ) from error
    if (
        not isinstance(checkpoint, dict)
        or not {"state_dict", "optimizer_states", "loops"} <= checkpoint.keys()
    ):
        raise UserError(f"{path} is not a checkpoint of train.py: use resume=auto or a .ckpt from runs/NAME")
    return checkpoint
