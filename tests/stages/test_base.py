"""The base class of both stages."""

from functools import partial

import pytest
import torch
from lightning import Callback

from ldm.callbacks.checkpoint import Checkpoint, newest_checkpoint
from tests.support import tiny


def test_micro_batches_cover_the_batch():
    stage = tiny.first_stage(micro_batch_size=3)
    parts = list(stage.micro_batches(tiny.batch(8)))
    assert [len(part["position"]) for part, _ in parts] == [3, 3, 2]
    assert [len(part["caption"]) for part, _ in parts] == [3, 3, 2]
    assert [fraction for _, fraction in parts] == [3 / 8, 3 / 8, 2 / 8]
    assert torch.equal(torch.cat([part["image"] for part, _ in parts]), tiny.batch(8)["image"])
    assert [fraction for _, fraction in tiny.first_stage().micro_batches(tiny.batch(8))] == [1.0]


def test_pixels_span_minus_one_to_one():
    batch = {**tiny.batch(1), "image": torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)}
    torch.testing.assert_close(tiny.first_stage().pixels(batch).flatten(), torch.tensor([-1.0, -0.6, 1.0]))


def test_the_gradient_is_clipped_to_its_norm():
    stage = tiny.first_stage()
    weight = torch.nn.Parameter(torch.zeros(2))
    for limit, expected in ((0.0, [3.0, 4.0]), (1.0, [0.6, 0.8]), (10.0, [3.0, 4.0])):
        weight.grad = torch.tensor([3.0, 4.0])
        stage.gradient_clip = limit
        assert stage.clip_gradient([weight]).item() == 5.0
        torch.testing.assert_close(weight.grad, torch.tensor(expected))


def test_the_global_generator_follows_seed_and_step():
    stage, numbers = tiny.first_stage(), []
    stage.on_train_batch_end = lambda *_: numbers.append(torch.rand(1).item())
    tiny.fit(stage, [tiny.batch(1)] * 3)
    torch.manual_seed(99)
    tiny.fit(stage, [tiny.batch(1)] * 3)
    assert numbers[:3] == numbers[3:] and len(set(numbers)) == 3


def test_a_log_row_every_log_every_steps():
    stage, rows = tiny.first_stage(log_every=3), []
    stage.log_row = lambda values: rows.append((stage.global_step, set(values)))
    tiny.fit(stage, [tiny.batch(1)] * 7)
    assert [step for step, _ in rows] == [3, 6]
    assert {"train/loss", "train/rec", "train/gradient_norm", "train/learning_rate"} <= rows[0][1]


STAGES = [lambda: tiny.first_stage(adversary=tiny.adversary(start=0)), tiny.second_stage]


@pytest.mark.parametrize("build", STAGES, ids=["first", "second"])
def test_the_learning_rate_follows_its_schedule(build):
    stage, rates = build(), []
    stage.log_row = lambda values: rates.append(values["train/learning_rate"])
    trainer = tiny.fit(stage, [tiny.batch(1)] * 4)
    assert rates == [3e-3 * stage.learning_rate(step) for step in range(4)] and len(set(rates)) > 2
    for optimizer in trainer.optimizers:
        assert optimizer.param_groups[0]["lr"] == 3e-3 * stage.learning_rate(4)


@pytest.mark.parametrize("build", STAGES, ids=["first", "second"])
def test_gradients_are_reset_after_the_step(build):
    stage = build()
    tiny.fit(stage, [tiny.batch(1)])
    assert all(p.grad is None for p in stage.parameters())


@pytest.mark.parametrize("build", [tiny.first_stage, tiny.second_stage], ids=["first", "second"])
def test_micro_batches_give_loss_and_gradient_of_the_whole_batch(build):
    trained = build()
    tiny.fit(trained, [tiny.batch(4)] * 2)  # the U-Net's last layer is initialised to zero
    start, losses, steps = tiny.snapshot(trained.model), {}, {}
    for size in (0, 3):
        stage = build(optimizer=partial(torch.optim.SGD, lr=1.0), micro_batch_size=size)
        stage.model.load_state_dict(start)
        stage.log_row = lambda values, size=size: losses.update({size: values["train/loss"].item()})
        tiny.fit(stage, [tiny.batch(8)])
        moved = stage.averaged_parameters().items()
        steps[size] = torch.cat([(p.detach() - start[name]).flatten() for name, p in moved])
    assert losses[3] == pytest.approx(losses[0], rel=1e-5)
    difference = (steps[0] - steps[3]).norm() / steps[0].norm()
    assert steps[0].norm() > 1e-3 and difference < 1e-5


def test_a_resumed_float64_run_keeps_its_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    data, snapshots = tiny.data(tmp_path, 3), []

    class Snapshot(Callback):
        def on_train_start(self, trainer, stage) -> None:
            snapshots.append(tiny.snapshot(stage))

    tiny.trainer(2, [Checkpoint(str(tmp_path / "c"))], precision="64-true").fit(tiny.first_stage(), data)
    saved = newest_checkpoint(tmp_path / "c")
    tiny.trainer(3, [Snapshot()], precision="64-true").fit(tiny.first_stage(), data, ckpt_path=saved)
    weights = torch.load(saved, weights_only=True)["state_dict"]
    assert any((value.float() != value.to(torch.float32)).any() for value in weights.values())
    assert all(torch.equal(snapshots[0][key], value) for key, value in weights.items())
