"""The number of processes for every form of trainer.devices."""

import pytest
import torch

from ldm.cli.training.machine_checks import count_devices
from ldm.errors import UserError


@pytest.mark.parametrize(
    ("devices", "count"), [("auto", 4), (-1, 4), ("-1", 4), (2, 2), ("2", 2), ([0, 2], 2), ("0,2", 2)]
)
def test_every_form_of_devices_is_counted(monkeypatch, devices, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert count_devices({"accelerator": "gpu", "devices": devices}) == count
    assert devices not in ("auto", -1) or count_devices({"accelerator": "cpu", "devices": devices}) == 1


@pytest.mark.parametrize("devices", [0, [], "none", None])
def test_no_device_is_refused(devices):
    with pytest.raises(UserError, match="trainer.devices=.*: use auto"):
        count_devices({"accelerator": "cpu", "devices": devices})
