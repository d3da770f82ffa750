"""One order of checks for train.py, the doctor and submit."""

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment

from ldm.cli.config.compose import compose
from ldm.cli.training.launcher import Launcher
from ldm.cli.training.preflight import Preflight
from ldm.errors import UserError
from tests.support import tiny

NODES = Launcher("srun", 2, 2, LightningEnvironment())


@pytest.fixture
def cfg(tmp_path):
    words = ["experiment=debug/ae", f"data.shards={tiny.shards(tmp_path / 'shards')}", "data.size=64"]
    return compose("train", [*words, f"run={tmp_path / 'run'}"])


def names(cfg, command, launch=None) -> list[str]:
    return [check.name for check in Preflight(cfg, command, launch).checks()]


def test_three_commands_share_one_order(cfg):
    doctor = names(cfg, "doctor")
    machine = {"precision", "shared memory", "open files"}
    assert names(cfg, "train") == names(cfg, "submit", NODES) == [n for n in doctor if n not in machine]
    for check in Preflight(cfg, "doctor").checks():
        assert set(check.needs) <= set(doctor[: doctor.index(check.name)]), "each needs only earlier ones"


def test_train_gets_its_parts_and_nothing_is_written(cfg, tmp_path):
    job = Preflight(cfg, "train")
    job.run()
    assert job.data.trainer is job.trainer and job.trainer.max_steps == cfg.trainer.max_steps
    assert job.resume is None and not (tmp_path / "run").exists()


def test_no_check_before_the_weights_uses_torchs_random_numbers(cfg):
    """So the initial weights are those of `seed` wherever in the order it is set."""
    before = torch.get_rng_state()
    for check in Preflight(cfg, "train").checks():
        if check.name == "weights":
            break
        check.run()
    assert torch.equal(torch.get_rng_state(), before)


def test_submit_allocates_no_network_and_checks_the_planned_processes(cfg):
    job = Preflight(cfg, "submit", NODES)
    job.run()
    assert job.world_size == 4 and {p.device.type for p in job.stage.parameters()} == {"meta"}
    cfg.data.global_batch_size = 6
    with pytest.raises(
        UserError, match="data.global_batch_size=6 .* 4 processes: .* data.global_batch_size=8"
    ):
        Preflight(cfg, "submit", NODES).run()
