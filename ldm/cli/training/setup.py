"""Build the trainer and its callbacks from the config, find the checkpoint to resume, print the summary."""

import logging
import os
import resource
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from ldm.callbacks.checkpoint import AtomicCheckpointIO, Checkpoint, list_checkpoints, newest_checkpoint
from ldm.callbacks.export import Export
from ldm.callbacks.preemption import Preemption
from ldm.cli.config.instantiate import instantiate
from ldm.cli.device import default_precision, trainer_device
from ldm.cli.training import launcher, run_config
from ldm.cli.training.resume_checks import Changes
from ldm.errors import UserError
from ldm.stages.base import Stage

# What Lightning builds for "ddp", also where "auto" selects it. Stage 1 has two optimizers and needs the
# search for unused parameters, which also keeps DDP from rebuilding its buckets after the first step: that
# would change the order of sums, and so the last bits of a resumed run. NCCL's default timeout of ten minutes
# would end the ranks before the watchdog has written their stacks.
StrategyRegistry.register(
    "ddp", DDPStrategy, override=True, find_unused_parameters=True, timeout=timedelta(minutes=30)
)

OPEN_FILES_LIMIT = 4096
"""The soft limit set by train.py, enough for a process with 64 open shards and a dozen loader workers."""


def find_checkpoint(cfg: DictConfig) -> Path | None:
    """Return the checkpoint that `resume` (null, auto or a path) names; UserError for a folder in use.

    A requeued SLURM job continues from the newest one of its own, whatever its command says.
    """
    folder = Path(cfg.run) / "checkpoints"
    newest, requeued = newest_checkpoint(folder), int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0
    if cfg.resume == "auto" or (cfg.resume is not None and newest is not None and requeued):
        return newest
    if cfg.resume is not None:
        _check_is_last(Path(cfg.resume), cfg.run)
        return Path(cfg.resume)
    if newest is not None:
        raise UserError(
            f"{cfg.run} already holds checkpoints: continue from them with resume=auto, or choose another "
            "folder with run=..."
        )
    return None


def _check_is_last(path: Path, run: str) -> None:
    """Raise UserError unless `path` exists and the run's folder has no later checkpoints, or any others."""
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: use resume=auto for the newest one in {run}")
    own = [other.resolve() for _, other in list_checkpoints(Path(run) / "checkpoints")]
    later = own[own.index(path.resolve()) + 1 :] if path.resolve() in own else own
    if later:
        raise UserError(
            f"{run} holds checkpoints that do not come before {path}, such as {later[-1].name}: choose "
            "another run=FOLDER, or remove them, since resume=auto would continue from them later"
        )


def model_file_path(cfg: DictConfig) -> Path:
    """Return the path of the model file that the run exports for sampling and for the next stage."""
    return Path(cfg.run) / f"{model_kind(cfg)}.safetensors"


def model_kind(cfg: DictConfig) -> str:
    """Return the kind of model file that the stage writes."""
    return "autoencoder" if cfg.stage._target_.endswith(".AutoencoderStage") else "latent_diffusion"


def build_trainer(cfg: DictConfig) -> Trainer:
    """Build Lightning's trainer with the run's callbacks and loggers, on the processes launched for it."""
    launch = launcher.detect()
    settings = launcher.apply_launcher(run_config.to_dict(cfg.trainer), launch)
    device = trainer_device(settings["accelerator"])
    if settings["precision"] == "auto":
        settings["precision"] = default_precision(device)
    plugins: list[Any] = [AtomicCheckpointIO(), launch.environment]
    if str(settings["precision"]) in ("16", "16-mixed") and device == "cpu":
        settings["precision"] = None  # Lightning would train in bf16 instead
        plugins.append(MixedPrecision("16-mixed", "cpu"))
    try:
        trainer: Trainer = instantiate({**settings, "_partial_": True})(
            callbacks=build_callbacks(cfg), logger=build_loggers(cfg), plugins=plugins
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the trainer rejects its settings: {' '.join(str(error).split())}") from error
    launcher.refuse_relaunch(trainer)
    return trainer


def build_loggers(cfg: DictConfig) -> list[Logger]:
    """Build the run's loggers."""
    return [instantiate(node) for node in cfg.logger.values() if node is not None]


def build_callbacks(cfg: DictConfig) -> list[Callback]:
    """Build the run's callbacks, and the one that exports the model file."""
    callbacks: list[Callback] = [instantiate(node) for node in cfg.callbacks.values() if node is not None]
    saver = cfg.callbacks.get("checkpoint")
    every = saver.every_n_steps if saver else cfg.trainer.max_steps
    model_config = run_config.to_dict(cfg.stage.model)
    callbacks.append(Export(str(model_file_path(cfg)), model_config, model_kind(cfg), every))
    # The checkpoint comes last: once it is there, so is the model file of the same step, also after a kill.
    # Before it comes the one that saves after a signal: that checkpoint has the averages of its step, too.
    callbacks.sort(key=lambda c: 2 if isinstance(c, Checkpoint) else int(isinstance(c, Preemption)))
    return callbacks


def listen_for_signals(callbacks: list[Callback]) -> None:
    """Let `Preemption` record the signals to stop from now on, while the rest of the run is still built."""
    for callback in callbacks:
        if isinstance(callback, Preemption):
            callback.listen()


def build_stage(cfg: DictConfig) -> Stage:
    """Build the stage with initial weights that depend on `seed` alone, and load its pretrained weights."""
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    stage: Stage = instantiate(cfg.stage)
    stage.load_pretrained()
    return stage


def raise_open_files_limit() -> None:
    """Raise the limit on open files: the usual 1,024 are too few for shards and the workers' batches."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < OPEN_FILES_LIMIT:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (min(hard, OPEN_FILES_LIMIT) if hard >= 0 else OPEN_FILES_LIMIT, hard)
        )


def silence_lightning() -> None:
    """Silence Lightning's log lines, which `print_summary` repeats, and warnings about what is intended."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for warning in (
        "isinstance.treespec, LeafSpec",
        "in eval mode at the start",
        "length of `list` .* is zero",
        "find_unused_parameters=True was specified",
        "The `srun` command is available",
    ):
        warnings.filterwarnings("ignore", f".*{warning}")


def print_summary(cfg: DictConfig, trainer: Trainer, stage: Stage) -> None:
    """Print parameters, batch size, steps, learning rate, device and folder."""
    trained = sum(p.numel() for p in stage.averaged_parameters().values())
    total = sum(p.numel() for p in stage.model.parameters())
    if not trainer.is_global_zero:
        return
    learning_rate = np.format_float_scientific(cfg.stage.optimizer.lr, trim="-", exp_digits=1)
    print(
        f"{cfg.name}: {trained:,} trained parameters of {total:,}\n"
        f"batch size {cfg.data.global_batch_size} over {trainer.world_size} process(es), "
        f"{trainer.max_steps:,} steps, learning rate {learning_rate} (never rescaled with the batch size)\n"
        f"{trainer.accelerator.__class__.__name__} in {trainer.precision}, writing to {cfg.run}",
        flush=True,
    )


def record_settings(cfg: DictConfig, trainer: Trainer, changes: Changes) -> None:
    """Print what a resumed run has changed; save the config in the run's folder, loggers and checkpoints."""
    if not trainer.is_global_zero:
        return
    for change in changes.printed:
        print(change, flush=True)
    config = run_config.resolve_config(cfg, str(trainer.precision)) | {"changes": changes.recorded}
    run_config.write(config, Path(cfg.run))
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoint):
            callback.metadata["config"] = config
    for logger in trainer.loggers:
        logger.log_hyperparams(config)
