"""What train.py checks, builds and says before the first step."""

import logging
import resource
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from ldm.callbacks.checkpoint import AtomicCheckpointIO, Checkpoint, newest_checkpoint
from ldm.callbacks.export import Export
from ldm.callbacks.loggers.wandb import WandbLogger
from ldm.callbacks.preemption import Preemption
from ldm.cli.config.instantiate import instantiate
from ldm.cli.training import launcher, preflight, run_config
from ldm.data.datamodule import ShardDataModule
from ldm.data.latents import read_header
from ldm.data.shards.reader import find_shards
from ldm.errors import UserError
from ldm.stages import AutoencoderStage, LatentDiffusionStage
from ldm.stages.base import Stage

# What Lightning builds for "ddp", also where "auto" means it. The search for unused parameters is what the
# two optimizers of stage 1 need, and it keeps DDP from cutting new buckets after its first step, which would
# change the order of sums and so the last bits of a resumed run. NCCL's own ten minutes would end the ranks
# before the watchdog has them say where they stand.
StrategyRegistry.register(
    "ddp", DDPStrategy, override=True, find_unused_parameters=True, timeout=timedelta(minutes=30)
)

OPEN_FILES = 4096
"""What a process with 64 open shards and a dozen loader workers never reaches."""


def checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint to go on from: `resume` is null, auto or a path; UserError for a folder in use."""
    preflight.folder(cfg.run)
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


def check_stage_and_data(stage: Stage, data: ShardDataModule, cfg: DictConfig) -> None:
    """UserError where the stage and its data do not belong together, or its files do not fit on the disk."""
    preflight.fits(stage, data)
    preflight.space(cfg, stage)
    if isinstance(stage, AutoencoderStage):
        stage.check_steps(cfg.trainer.max_steps)
        if read_header(find_shards(data.shards)) is not None:
            raise UserError(
                f"{data.shards} holds latents and stage 1 trains on images: give data.shards=IMAGES"
            )
    if isinstance(stage, LatentDiffusionStage):
        data.check_latents(stage.first_stage_hash())


def model_file_path(cfg: DictConfig) -> Path:
    """Where the run leaves what sampling and the next stage read."""
    return Path(cfg.run) / f"{kind(cfg)}.safetensors"


def kind(cfg: DictConfig) -> str:
    """Which kind of model file the stage writes."""
    return "autoencoder" if cfg.stage._target_.endswith(".AutoencoderStage") else "latent_diffusion"


def trainer(cfg: DictConfig) -> Trainer:
    """Lightning's trainer with this run's callbacks and loggers, on the processes started for it."""
    preflight.folders(cfg)
    loggers = [instantiate(c) for c in cfg.logger.values() if c is not None]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.check()
    launched = launcher.detect()
    wanted: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    settings = launcher.apply_launcher(wanted, launched)
    if settings["precision"] == "auto":
        settings["precision"] = precision(settings["accelerator"])
    plugins = [AtomicCheckpointIO(), launched.environment]
    try:
        made: Trainer = instantiate({**settings, "_partial_": True})(
            callbacks=callbacks(cfg), logger=loggers, plugins=plugins
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the trainer refuses its settings: {' '.join(str(error).split())}") from error
    launcher.refuse_relaunch(made)
    return made


def callbacks(cfg: DictConfig) -> list[Callback]:
    """This run's; from here on a signal to stop is noted."""
    found = [instantiate(c) for c in cfg.callbacks.values() if c is not None]
    model_config = OmegaConf.to_container(cfg.stage.model, resolve=True)
    saver = cfg.callbacks.get("checkpoint")
    every = saver.every_n_steps if saver else cfg.trainer.max_steps
    found.append(Export(str(model_file_path(cfg)), model_config, kind(cfg), every))
    # The checkpoint last: where it stands, the step's model file stands too, also after a kill.
    found.sort(key=lambda c: isinstance(c, Checkpoint))
    for callback in found:
        if isinstance(callback, Preemption):
            callback.listen()
    return found


def precision(accelerator: str) -> str:
    """bf16 autocast where the device computes in bf16, else fp32."""
    if accelerator != "cpu" and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def raise_open_files_limit() -> None:
    """Raise the limit on open files: the usual 1,024 are few for shards and workers' batches."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, OPEN_FILES) if hard >= 0 else OPEN_FILES, hard))


def silence_lightning() -> None:
    """Silence Lightning's notes, which repeat what `print_summary` says, and its doubts about what is meant."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for doubt in (
        "isinstance.treespec, LeafSpec",
        "in eval mode at the start",
        "length of `list` .* is zero",
        "find_unused_parameters=True was specified",
        "The `srun` command is available",
    ):
        warnings.filterwarnings("ignore", f".*{doubt}")


def print_summary(cfg: DictConfig, trainer: Trainer, stage: Stage) -> None:
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
    config = run_config.resolve(cfg)
    for change in run_config.write(config, Path(cfg.run)):
        print(f"changed since the run was last started: {change}", flush=True)
    for logger in trainer.loggers:
        logger.log_hyperparams(config)
