"""Checks of a training config alone: numbers, precision, optimizer settings and writable folders."""

import math

import torch
from omegaconf import DictConfig

from ldm.cli.config.instantiate import instantiate
from ldm.cli.config.validate import check_integer, check_writable
from ldm.cli.training import run_config
from ldm.errors import UserError

MIN_INTEGER = {
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
"""Minimum of each integer that nothing else checks before training."""
MIN_NUMBER = {"stage.gradient_clip": 0, "optimizer.lr": 0}
"""Minimum of each number that need not be an integer."""


def check_config(cfg: DictConfig) -> None:
    """Raise UserError for what can be seen to be wrong from the config alone."""
    if not cfg.name:
        raise UserError("name is empty: give the run a name, e.g. name=ldm_f8_text")
    check_numbers(cfg)
    check_precision(cfg)
    check_optimizer(cfg)
    if cfg.first_stage is not None and cfg.stage._target_.endswith(".AutoencoderStage"):
        raise UserError(
            f"first_stage={cfg.first_stage} is only used by stage 2, but {cfg.name} trains the autoencoder: "
            f"remove first_stage, or use init={cfg.first_stage} to start from its weights"
        )


def check_numbers(cfg: DictConfig) -> None:
    """Raise UserError for a number that is not finite, below its minimum, or a count that is not whole."""
    values = dict(run_config.flatten(run_config.to_dict(cfg)))
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key} must be a finite number, not {value}")
    for key, minimum in MIN_INTEGER.items():
        check_integer(key, values.get(key, minimum), minimum)
    for key, minimum in MIN_NUMBER.items():
        value = values.get(key, minimum)
        if isinstance(value, int | float) and value < minimum:
            raise UserError(f"{key} must be {minimum} or more, not {value}")
    devices = cfg.trainer.devices
    if isinstance(devices, int) and devices < 1 and devices != -1:
        raise UserError(f"trainer.devices must be auto, or 1 or more, not {devices}")


def check_precision(cfg: DictConfig) -> None:
    """Raise UserError for a precision in which the stages cannot train."""
    precision = str(cfg.trainer.precision)
    if precision.startswith("16"):
        problem = "scales gradients, which the stages' gradient clipping does not support"
    elif precision.startswith("64") and torch.Tensor.float is not torch.Tensor.double:  # tests patch this
        problem = "does not work with the stages, which convert images and latents to float32"
    else:
        return
    raise UserError(f"trainer.precision={precision} {problem}: use trainer.precision=bf16-mixed or 32-true")


def check_optimizer(cfg: DictConfig) -> None:
    """Raise UserError where the optimizer rejects its settings, tried on a single parameter."""
    factory = instantiate(cfg.stage.optimizer)
    try:
        factory([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"the optimizer rejects its settings (optimizer.*): {error}") from error


def check_folders(cfg: DictConfig) -> None:
    """Raise UserError where the folder of the run, of a logger or of a callback cannot be written."""
    check_writable(cfg.run)
    for group in ("logger", "callbacks"):
        for name, node in cfg[group].items():
            for key in ("folder", "path"):
                if node is not None and node.get(key) is not None:
                    check_writable(node[key], f"{group}.{name}.{key}")
