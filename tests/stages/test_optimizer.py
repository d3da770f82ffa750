"""Optimizers and learning rates follow the config in a resumed run."""

from functools import partial

import pytest
import torch
from torch import nn

from ldm.stages.optimizer import LearningRateSchedule, keep_hyperparameters
from tests.support import tiny


def build(weights: nn.Parameter, factor, **options) -> tuple[torch.optim.Optimizer, LearningRateSchedule]:
    optimizer = torch.optim.AdamW([weights], **options)
    keep_hyperparameters(optimizer)
    return optimizer, LearningRateSchedule(optimizer, factor)


def step(optimizer, scheduler, weights: nn.Parameter, gradient: float) -> float:
    weights.grad = torch.full_like(weights, gradient)
    learning_rate = scheduler.get_last_lr()[0]
    optimizer.step()
    scheduler.step()
    return learning_rate


def test_a_resumed_step_equals_adamws_formula_with_the_new_settings():
    """Moments after two steps with the old ones; the third step in double precision by hand."""
    weights = nn.Parameter(torch.ones(3))
    old = build(weights, lambda n: 1.0, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, eps=1e-8, fused=True)
    step(*old, weights, 2.0)
    step(*old, weights, -1.0)
    saved, before = [part.state_dict() for part in old], weights.detach().double().clone()

    settings = {"lr": 0.5, "betas": (0.6, 0.7), "weight_decay": 0.3, "eps": 1e-3}
    new = build(weights, lambda n: 1 / (n + 1), **settings, fused=False)
    new[0].load_state_dict(saved[0])
    new[1].load_state_dict(saved[1])
    assert step(*new, weights, 4.0) == 0.5 / 3, "of the new schedule at step 2, counted from 0"
    assert new[0].param_groups[0]["fused"] is False and new[1].get_last_lr() == [0.5 / 4]

    m = 0.6 * (0.9 * (0.1 * 2) + 0.1 * -1) + 0.4 * 4
    v = 0.7 * (0.99 * (0.01 * 4) + 0.01 * 1) + 0.3 * 16
    update = (m / (1 - 0.6**3)) / ((v / (1 - 0.7**3)) ** 0.5 + 1e-3)
    expected = before * (1 - 0.5 / 3 * 0.3) - 0.5 / 3 * update
    torch.testing.assert_close(weights.detach().double(), expected, rtol=1e-6, atol=1e-7)


def test_the_same_settings_restore_the_same_state():
    weights, factor = nn.Parameter(torch.ones(2)), lambda n: 0.9**n
    old = build(weights, factor, lr=1e-2)
    for gradient in (1.0, -3.0, 0.5):
        step(*old, weights, gradient)
    new = build(weights, factor, lr=1e-2)
    for part, other in zip(new, old, strict=True):
        part.load_state_dict(other.state_dict())
    assert new[1].state_dict() == old[1].state_dict() and new[1].last_epoch == 3
    assert new[0].state_dict()["param_groups"] == old[0].state_dict()["param_groups"]
    assert new[0].param_groups[0]["lr"] == 1e-2 * 0.9**3


@pytest.mark.parametrize("build_stage", [tiny.first_stage, tiny.second_stage])
def test_every_optimizer_of_a_stage_follows_the_config(tmp_path, build_stage):
    adversary = {"adversary": tiny.adversary()} if build_stage is tiny.first_stage else {}
    for lr, decay, steps in ((1e-3, 0.0, 3), (4e-3, 0.5, 5)):
        optimizer = partial(torch.optim.Adam, lr=lr, weight_decay=decay)
        stage, path = build_stage(optimizer=optimizer, **adversary), tmp_path / "3.ckpt"
        trainer = tiny.trainer(steps)
        data = tiny.data(tmp_path / "shards", steps)
        trainer.fit(stage, data, ckpt_path=path if steps == 5 else None, weights_only=True)
        trainer.save_checkpoint(path)
    assert len(trainer.optimizers) == 1 + len(adversary)
    for optimizer, config in zip(trainer.optimizers, trainer.lr_scheduler_configs, strict=True):
        (group,) = optimizer.param_groups
        assert (group["weight_decay"], group["initial_lr"], config.scheduler.base_lrs) == (0.5, 4e-3, [4e-3])
        assert config.scheduler.last_epoch == 5 and group["lr"] == 4e-3 * stage.learning_rate(5)
