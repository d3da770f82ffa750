"""What train.py checks, builds and says before the first step."""

import logging
import warnings
from pathlib import Path

import torch
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from ldm.callbacks.checkpoint import AtomicCheckpointIO, Checkpoint, newest_checkpoint
from ldm.callbacks.sampling_file import SamplingFile
from ldm.cli.build import build
from ldm.data.latents import read_header
from ldm.data.module import ShardDataModule
from ldm.data.reader import find_shards
from ldm.errors import UserError
from ldm.stages import AutoencoderStage, LatentDiffusionStage
from ldm.stages.base import Stage


def checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint to go on from: `resume` is null, auto or a path; UserError for a folder in use."""
    newest = newest_checkpoint(Path(cfg.run) / "checkpoints")
    if cfg.resume == "auto":
        return newest
    if cfg.resume is not None:
        if not Path(cfg.resume).is_file():
            raise UserError(
                f"there is no checkpoint {cfg.resume}: give resume=auto for the newest of {cfg.run}"
            )
        return Path(cfg.resume)
    if newest is not None:
        raise UserError(
            f"{cfg.run} already holds checkpoints: go on from them with resume=auto, "
            "or choose another folder with run=..."
        )
    return None


def match(stage: Stage, data: ShardDataModule, cfg: DictConfig) -> None:
    """UserError where the stage and its data do not belong together."""
    if isinstance(stage, AutoencoderStage):
        stage.check_steps(cfg.trainer.max_steps)
        if read_header(find_shards(data.shards)) is not None:
            raise UserError(
                f"{data.shards} holds latents and stage 1 trains on pictures: give data.shards=PICTURES"
            )
    if isinstance(stage, LatentDiffusionStage):
        data.check_latents(stage.first_stage_hash())


def sampling_file(cfg: DictConfig) -> Path:
    """Where the run leaves what sampling and the next stage read."""
    return Path(cfg.run) / f"{kind(cfg)}.safetensors"


def kind(cfg: DictConfig) -> str:
    """Which kind of sampling file the stage writes."""
    return "autoencoder" if cfg.stage._target_.endswith(".AutoencoderStage") else "latent_diffusion"


def trainer(cfg: DictConfig) -> Trainer:
    """Lightning's trainer with this run's callbacks and loggers."""
    callbacks = [build(c) for c in cfg.callbacks.values() if c is not None]
    model_config = OmegaConf.to_container(cfg.stage.model, resolve=True)
    every = cfg.callbacks.checkpoint.every_n_steps if cfg.callbacks.checkpoint else cfg.trainer.max_steps
    callbacks.append(SamplingFile(str(sampling_file(cfg)), model_config, kind(cfg), every))
    # The checkpoint last: where it stands, the step's sampling file stands too, also after a kill.
    callbacks.sort(key=lambda c: isinstance(c, Checkpoint))
    loggers = [build(c) for c in cfg.logger.values() if c is not None]
    settings = OmegaConf.to_container(cfg.trainer, resolve=True)
    if settings["precision"] == "auto":
        settings["precision"] = precision(settings["accelerator"])
    made: Trainer = build({**settings, "_partial_": True})(
        callbacks=callbacks, logger=loggers, plugins=[AtomicCheckpointIO()]
    )
    return made


def precision(accelerator: str) -> str:
    """bf16 autocast where the device computes in bf16, else fp32."""
    if accelerator != "cpu" and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def quieten() -> None:
    """Silence Lightning's notes, which repeat what `announce` says, and its doubts about what is meant."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for doubt in (
        "isinstance.treespec, LeafSpec",
        "in eval mode at the start",
        "length of `list` .* is zero",
    ):
        warnings.filterwarnings("ignore", f".*{doubt}")


def announce(cfg: DictConfig, trainer: Trainer, stage: Stage) -> None:
    """Say what is about to happen: size, effective batch and rate, device, where it goes."""
    trained = sum(p.numel() for p in stage.averaged_parameters().values())
    total = sum(p.numel() for p in stage.model.parameters())
    if not trainer.is_global_zero:
        return
    print(
        f"{cfg.name}: {trained:,} trained parameters of {total:,}\n"
        f"batch {cfg.data.global_batch_size} over {trainer.world_size} process(es), "
        f"{trainer.max_steps:,} steps, rate {cfg.stage.optimizer.lr:g} (never rescaled)\n"
        f"{trainer.accelerator.__class__.__name__} in {trainer.precision}, into {cfg.run}",
        flush=True,
    )
