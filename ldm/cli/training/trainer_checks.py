"""Refuse arguments of Lightning's trainer that do not work with manual optimization, or have a key here."""

import yaml
from omegaconf import DictConfig

from ldm.cli.config.compose import CONFIGS
from ldm.cli.training.run_config import to_dict
from ldm.errors import UserError

FIXED = {
    "gradient_clip_val": "use stage.gradient_clip",
    "gradient_clip_algorithm": "stage.gradient_clip always clips the norm",
    "accumulate_grad_batches": "use stage.micro_batch_size, which divides data.global_batch_size",
    "max_epochs": "use trainer.max_steps",
    "min_epochs": "use trainer.max_steps",
    "min_steps": "use trainer.max_steps",
    "max_time": "use trainer.max_steps, or the time limit of a SLURM job, before which train.py saves",
    "limit_train_batches": "use trainer.max_steps",
    "limit_val_batches": "use data.val_batches, or data.val_shards=null for no validation",
    "limit_test_batches": "train.py does not test",
    "limit_predict_batches": "train.py does not predict",
    "overfit_batches": "use data.shards with few images",
    "fast_dev_run": "use trainer.max_steps=1",
    "num_sanity_val_steps": "a resumed run would validate once more",
    "check_val_every_n_epoch": "use trainer.val_check_interval, in steps",
    "log_every_n_steps": "use stage.log_every",
    "enable_checkpointing": "use callbacks.checkpoint",
    "enable_progress_bar": "callbacks.progress shows it, callbacks.progress=null hides it",
    "enable_model_summary": "train.py prints the number of parameters",
    "use_distributed_sampler": "the data module itself divides the samples among the ranks",
    "reload_dataloaders_every_n_epochs": "the data are one endless epoch",
    "barebones": "use callbacks.NAME=null for fewer callbacks",
    "logger": "use the config group logger",
    "callbacks": "use the config group callbacks",
    "plugins": "train.py sets them",
    "enable_autolog_hparams": "train.py logs the config itself",
    "model_registry": "train.py writes the model file itself",
}
"""Arguments that keep the value in configs/trainer/auto.yaml, and what to use instead."""


def check_trainer(cfg: DictConfig) -> None:
    """Raise UserError for an argument that does not work with the stages."""
    shipped = yaml.safe_load((CONFIGS / "trainer" / "auto.yaml").read_text())
    given = to_dict(cfg.trainer)
    for key, advice in FIXED.items():
        if given.get(key) != shipped.get(key):
            raise UserError(f"trainer.{key}={given[key]} does not work with the stages of ldm: {advice}")
    devices = cfg.trainer.devices
    if isinstance(devices, int) and devices < 1 and devices != -1:
        raise UserError(f"trainer.devices must be auto, or 1 or more, not {devices}")
