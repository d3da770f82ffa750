"""The devices that commands accept, and the precision of each."""

import pytest
import torch

from ldm.cli.device import autocast_for_sampling, default_precision, pick_device, trainer_device
from ldm.errors import UserError


def pretend(monkeypatch, gpus: int = 0, apple: bool = False, capability: tuple[int, int] = (8, 0)) -> None:
    """Pretend to be a machine with these GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    native = capability >= (8, 0)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
    )
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)


@pytest.mark.parametrize(
    ("name", "gpus", "apple", "expected"),
    [
        ("auto", 0, False, "cpu"),
        ("auto", 2, False, "cuda"),
        ("auto", 0, True, "mps:0"),
        ("cpu", 2, True, "cpu"),
        ("cuda", 1, False, "cuda"),
        ("cuda:1", 2, False, "cuda:1"),
        ("mps", 0, True, "mps:0"),
        ("mps:0", 0, True, "mps:0"),
    ],
)
def test_devices(monkeypatch, name, gpus, apple, expected):
    pretend(monkeypatch, gpus, apple)
    assert pick_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "gpus", "apple", "message"),
    [
        ("cuda", 0, False, "device=cuda, but PyTorch finds no GPU on this machine: use device=cpu"),
        ("cuda:1", 1, False, r"device=cuda:1, .* 1 GPU\(s\), counted from 0: use device=cuda:0"),
        ("cuda:2", 2, False, r"device=cuda:2, .* 2 GPU\(s\)"),
        ("mps", 2, False, "device=mps, but PyTorch finds no Apple GPU on this machine: use device=cpu"),
        ("mps:1", 0, True, "device=mps:1, .* use device=mps:0"),
        *[
            (name, 2, True, f"unknown device={name}: use auto, cpu, mps, cuda or")
            for name in ("gpu", "tpu", "xpu", "meta", "0", "cuda:x", "cuda:-1", "cpux", "None", "")
        ],
    ],
)
def test_devices_that_are_refused(monkeypatch, name, gpus, apple, message):
    pretend(monkeypatch, gpus, apple)
    with pytest.raises(UserError, match=message):
        pick_device(name)


@pytest.mark.parametrize(
    ("accelerator", "gpus", "apple", "expected"),
    [
        ("auto", 0, False, "cpu"),
        ("auto", 1, False, "cuda"),
        ("auto", 0, True, "mps"),
        ("gpu", 1, False, "cuda"),
        ("gpu", 0, True, "mps"),
        ("cuda", 1, False, "cuda"),
        ("mps", 0, True, "mps"),
        ("cpu", 1, True, "cpu"),
    ],
)
def test_the_device_of_a_trainer(monkeypatch, accelerator, gpus, apple, expected):
    pretend(monkeypatch, gpus, apple)
    assert trainer_device(accelerator) == expected


@pytest.mark.parametrize("accelerator", ["tpu", "xla", "hpu", "GPU", ""])
def test_other_accelerators_are_refused(accelerator):
    with pytest.raises(UserError, match=f"unknown trainer.accelerator={accelerator}: use auto, cpu, gpu or"):
        trainer_device(accelerator)


@pytest.mark.parametrize(
    ("gpu", "capability", "precision", "dtype"),
    [
        ("A100", (8, 0), "bf16-mixed", torch.bfloat16),
        ("H100", (9, 0), "bf16-mixed", torch.bfloat16),
        ("V100", (7, 0), "16-mixed", torch.float16),
        ("T4, RTX 20", (7, 5), "16-mixed", torch.float16),
        ("GTX 1080", (6, 1), "32-true", None),
    ],
)
def test_the_precision_of_a_gpu(monkeypatch, gpu, capability, precision, dtype):
    pretend(monkeypatch, 1, capability=capability)
    assert default_precision("cuda") == precision
    autocast = autocast_for_sampling(torch.device("cuda"))
    assert autocast._enabled == (dtype is not None) and (dtype is None or autocast.fast_dtype == dtype)


@pytest.mark.parametrize("native", [True, False])
def test_the_precision_of_other_devices(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert default_precision("cpu") == ("bf16-mixed" if native else "32-true")
    assert default_precision("mps") == "32-true"
    assert not autocast_for_sampling(torch.device("cpu"))._enabled
