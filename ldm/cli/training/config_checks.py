"""Checks of a training config alone: precision, optimizer settings and writable folders."""

import torch
from omegaconf import DictConfig

from ldm.cli.config.instantiate import instantiate
from ldm.cli.config.validate import check_writable
from ldm.cli.training.trainer_checks import check_trainer
from ldm.errors import UserError


def check_config(cfg: DictConfig) -> None:
    """Raise UserError for what can be seen to be wrong from the config alone."""
    if not cfg.name:
        raise UserError("name is empty: give the run a name, e.g. name=ldm_f8_text")
    check_trainer(cfg)
    check_precision(cfg)
    check_optimizer(cfg)
    if cfg.first_stage is not None and cfg.stage._target_.endswith(".AutoencoderStage"):
        raise UserError(
            f"first_stage={cfg.first_stage} is only used by stage 2, but {cfg.name} trains the autoencoder: "
            f"remove first_stage, or use init={cfg.first_stage} to start from its weights"
        )


def check_precision(cfg: DictConfig) -> None:
    """Raise UserError for a precision in which the stages cannot train."""
    precision = str(cfg.trainer.precision)
    if precision == "16-true":
        problem = "stores the weights in fp16 as well, where small updates round to nothing"
    elif precision.startswith("64") and torch.Tensor.float is not torch.Tensor.double:  # tests patch this
        problem = "does not work with the stages, which convert images and latents to float32"
    else:
        return
    raise UserError(
        f"trainer.precision={precision} {problem}: use trainer.precision=auto, bf16-mixed, 16-mixed or "
        "32-true"
    )


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
