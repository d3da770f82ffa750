"""Arguments of Lightning's trainer: each works with the stages, or is refused with what to use instead."""

import inspect
from functools import cache
from typing import Any

import pytest
from lightning import Trainer
from omegaconf import OmegaConf

from ldm.cli.config.compose import compose
from ldm.cli.training.run_config import to_dict
from ldm.cli.training.trainer_checks import FIXED, check_trainer
from ldm.errors import UserError

FALSE = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
"""Arguments of which true is refused; 2 is of all others."""
ALLOWED = {
    "accelerator": "cpu", "strategy": "ddp", "devices": 1, "num_nodes": 2, "precision": "32-true",
    "max_steps": 7, "val_check_interval": 3, "default_root_dir": "x", "sync_batchnorm": True,
    "deterministic": True, "benchmark": True, "inference_mode": False, "profiler": "simple",
    "detect_anomaly": True,
}  # fmt: skip


def test_every_argument_of_the_trainer_is_decided() -> None:
    arguments = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert arguments == FIXED.keys() | ALLOWED.keys() and not FIXED.keys() & ALLOWED.keys()


@cache
def compose_trainer() -> dict[str, Any]:
    return to_dict(compose("train", ["experiment=debug/ae", "data.shards=shards"]).trainer)


def check(**settings: Any) -> None:
    check_trainer(OmegaConf.create({"trainer": compose_trainer() | settings}))


@pytest.mark.parametrize("key", FIXED)
def test_an_argument_with_another_key_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"^trainer\.{key}=\S+ does not work .*: \w"):
        check(**{key: True if key in FALSE else 2})


def test_the_other_arguments_pass() -> None:
    check(**ALLOWED)


@pytest.mark.parametrize("devices", [0, -2])
def test_the_number_of_devices_is_positive(devices: int) -> None:
    with pytest.raises(UserError, match=f"trainer.devices must be auto, .* not {devices}"):
        check(devices=devices)
