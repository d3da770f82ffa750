"""Checks of the machine that trains: processes, precision, shared memory, open files."""

import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from ldm.cli.device import default_precision, trainer_device
from ldm.cli.training import setup
from ldm.errors import UserError

SHARED_MEMORY = Path("/dev/shm")


def count_devices(settings: Mapping[str, Any]) -> int:
    """Return the number of processes per node; `devices` may be auto, -1, 2, [0, 2] or "0,2"."""
    devices = settings["devices"]
    if devices in ("auto", -1, "-1"):
        return 1 if settings["accelerator"] == "cpu" else max(torch.cuda.device_count(), 1)
    try:
        if isinstance(devices, str):
            devices = (
                [part for part in devices.split(",") if part.strip()] if "," in devices else int(devices)
            )
        count = devices if isinstance(devices, int) else len(devices)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise UserError(
            f"trainer.devices={settings['devices']} names no devices: use auto, a number of processes or a "
            "list of devices"
        )
    return count


def describe_precision(cfg: DictConfig) -> str:
    """Return the precision of training and the devices it runs on."""
    precision, device = cfg.trainer.precision, trainer_device(cfg.trainer.accelerator)
    if precision == "auto":
        precision = default_precision(device)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    place = {"cuda": ", ".join(names), "mps": "the Apple GPU", "cpu": "the CPU"}[device]
    return f"{precision} on {place}"


def check_shared_memory(cfg: DictConfig) -> str:
    """Return the free and needed shared memory; UserError if prefetched batches may not fit (bus error)."""
    if not SHARED_MEMORY.is_dir():
        return f"no {SHARED_MEMORY} on this system"
    data = cfg.data
    needed = 3 * data.num_workers * data.global_batch_size * data.size**2 * 3
    free = shutil.disk_usage(SHARED_MEMORY).free
    text = f"{free / 2**30:.1f} GiB free, at most {needed / 2**30:.1f} GiB needed"
    if needed > free:
        raise UserError(
            f"{SHARED_MEMORY} may be too small ({text}): start the container with "
            f"--shm-size={2 * needed >> 30 or 1}g, or lower data.num_workers"
        )
    return text


def describe_open_files() -> str:
    """Return the limit on open files, which train.py raises as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 0:
        return "no limit"
    if soft >= setup.OPEN_FILES_LIMIT:
        return f"up to {soft:,} per process"
    if 0 <= hard < setup.OPEN_FILES_LIMIT:
        return (
            f"low limit: {hard:,} per process, {setup.OPEN_FILES_LIMIT:,} are enough for any run; if "
            'training stops with "Too many open files", lower data.num_workers or request a larger '
            "`ulimit -Hn`"
        )
    return f"up to {soft:,} per process, which train.py raises to {setup.OPEN_FILES_LIMIT:,}"
