"""The device that a command computes on, and the precision that suits it."""

from typing import Literal

import torch

from ldm.errors import UserError

DeviceType = Literal["cuda", "mps", "cpu"]

MISSING = {
    "cuda": "PyTorch finds no GPU on this machine",
    "mps": "PyTorch finds no Apple GPU on this machine",
}


def available_device() -> DeviceType:
    """Return the type of the fastest device of this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pick_device(name: str) -> torch.device:
    """Return the device that `device` names: cpu, mps, cuda, cuda:1, or auto for the GPU if there is one.

    UserError for another name, and for a device that this machine lacks.
    """
    name = available_device() if name == "auto" else str(name)
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdecimal()):
        raise UserError(f"unknown device={name}: use auto, cpu, mps, cuda or, for the second GPU, cuda:1")
    if kind != "cpu" and not _is_available(kind):
        raise UserError(f"device={name}, but {MISSING[kind]}: use device=cpu")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if index and int(index) >= count:
        raise UserError(
            f"device={name}, but this machine has {count} GPU(s), counted from 0: use device={kind}:0"
        )
    return torch.device("mps", 0) if kind == "mps" else torch.device(name)


def trainer_device(accelerator: str) -> DeviceType:
    """Return the type of device that `trainer.accelerator` selects here; UserError if there is none."""
    chosen: dict[str, DeviceType] = {"cpu": "cpu", "cuda": "cuda", "mps": "mps"}
    chosen |= dict.fromkeys(("auto", "gpu"), available_device())
    if accelerator not in chosen:
        raise UserError(f"unknown trainer.accelerator={accelerator}: use auto, cpu, gpu or mps")
    return chosen[accelerator]


def default_precision(device: str) -> str:
    """Return the precision that trains well and fast on a device type: cuda, mps or cpu.

    bf16 autocast where the device has native bf16; else fp16 autocast on GPUs with fp16 tensor cores; else
    fp32.
    """
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed"
        return "16-mixed" if torch.cuda.get_device_capability() >= (7, 0) else "32-true"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if device == "cpu" and native else "32-true"


def autocast_for_sampling(device: torch.device) -> torch.autocast:
    """Return the autocast for sampling on a CUDA GPU, in its default precision; none on other devices."""
    precision = default_precision("cuda") if device.type == "cuda" else "32-true"
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "32-true")


def _is_available(kind: str) -> bool:
    return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
