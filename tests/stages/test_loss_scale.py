"""fp16 training: the loss scale, and both stages with it, on the CPU."""

from functools import partial

import pytest
import torch
from lightning import Callback

from ldm.callbacks.checkpoint import Checkpoint, newest_checkpoint
from ldm.callbacks.ema import EMA
from ldm.callbacks.skip_bad_steps import SkipBadSteps
from ldm.losses.adversary import Adversary
from ldm.losses.regularizers import R1, LeCam
from ldm.networks.discriminator import PatchDiscriminator
from ldm.stages import loss_scale
from ldm.stages.loss_scale import LossScale
from tests.support import tiny
from tests.support.ranks import Poison

FUSED = partial(torch.optim.AdamW, lr=3e-3, fused=True)
UNFUSED = partial(torch.optim.AdamW, lr=3e-3)


def first_stage(regularizer=None, **options):
    discriminator = PatchDiscriminator(channels=4, num_layers=1)
    adversary = Adversary(discriminator, 0.5, start=0, warmup=0, ramp_steps=0, regularizer=regularizer)
    return tiny.first_stage(adversary=adversary, **{"optimizer": FUSED, **options})


def second_stage(**options):
    return tiny.second_stage(**{"optimizer": FUSED, **options})


class Scale(Callback):
    """Sets the scale before training, and records scale, overflow and weights after each step."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.factors, self.overflows, self.weights = [], [], []

    def on_train_start(self, trainer, stage) -> None:
        stage.loss_scale.factor.fill_(self.factor)
        self.weights.append(tiny.snapshot(stage))

    def on_train_batch_end(self, trainer, stage, *_) -> None:
        self.factors.append(stage.loss_scale.factor.item())
        self.overflows.append(int(stage.loss_scale.overflows))
        self.weights.append(tiny.snapshot(stage))


def test_the_scale_halves_on_overflow_and_doubles_after_an_interval():
    scale, norms = LossScale(interval=3), torch.ones(2)
    bad = torch.tensor([1.0, torch.inf])
    results = []
    for values in (norms, bad, norms, norms, norms, norms, bad * torch.nan):
        results.append((int(scale.update(values)), scale.factor.item() / 2**16, int(scale.overflows)))
    assert results == [(0, 1, 0), (1, 0.5, 1), (0, 0.5, 1), (0, 0.5, 1), (0, 1, 1), (0, 1, 1), (1, 0.5, 2)]


def test_the_scale_stays_within_its_limits():
    scale, bad = LossScale(interval=1), torch.tensor([torch.nan])
    skipped = [int(scale.update(bad)) for _ in range(20)]
    assert skipped == [1] * 16 + [0] * 4 and scale.factor == 1, "at 1 the guard decides"
    for _ in range(40):
        scale.update(torch.ones(1))
    assert scale.factor == 2.0**32


def gradients(stage, precision: str, *callbacks: Callback) -> dict[str, torch.Tensor]:
    """Return the unscaled, clipped gradients of the first step."""
    found = {}
    guard = stage.apply_step_guard

    def record(*norms: torch.Tensor) -> torch.Tensor:
        found.update({n: p.grad.clone() for n, p in stage.named_parameters() if p.grad is not None})
        found["norms"] = torch.stack(norms)
        return guard(*norms)

    stage.apply_step_guard = record
    tiny.fit(stage, [tiny.batch(4)], callbacks, precision=precision)
    return found


STAGES = {
    "first": first_stage,
    "r1": lambda **options: first_stage(R1(10.0), **options),
    "lecam": lambda **options: first_stage(LeCam(0.1), **options),
    "second": second_stage,
}


def trained(name: str, **options):
    """Return a stage after two steps in fp32: a U-Net's last layer is initialised to zero."""
    torch.manual_seed(0)
    stage = STAGES[name](**options)
    tiny.fit(stage, [tiny.batch(4)] * 2)
    return stage


@pytest.mark.parametrize(
    ("name", "micro_batch_size"),
    [("first", 2), ("r1", 0), ("lecam", 0), pytest.param("second", 2, marks=pytest.mark.slow)],
)
def test_the_unscaled_gradient_is_that_of_fp32(name, micro_batch_size):
    exact = gradients(trained(name, micro_batch_size=micro_batch_size), "32-true")
    scaled = gradients(trained(name, micro_batch_size=micro_batch_size), "16-mixed")
    assert exact.keys() == scaled.keys() and len(exact) > 10
    ours, theirs = (torch.cat([g.flatten() for g in found.values()]) for found in (scaled, exact))
    assert 0 < (ours - theirs).norm() / theirs.norm() < 0.02


@pytest.mark.parametrize("name", ["first", "second"])
def test_clipping_sees_the_unscaled_norm(name):
    found = []
    for factor in (1.0, 2.0**12):
        stage = trained(name)
        stage.gradient_clip = 0.01
        found.append(gradients(stage, "16-mixed", Scale(factor)))
        clipped = [found[-1][n] for n, _ in stage.model.named_parameters(prefix="model") if n in found[-1]]
        torch.testing.assert_close(torch.cat([g.flatten() for g in clipped]).norm(), torch.tensor(0.01))
    assert found[0]["norms"].min() > 0.01
    torch.testing.assert_close(found[0]["norms"], found[1]["norms"], rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        pytest.param("lecam", FUSED, id="fused"),
        pytest.param("second", UNFUSED, id="unfused"),
        pytest.param("second", FUSED, marks=pytest.mark.slow, id="second fused"),
        pytest.param("lecam", UNFUSED, marks=pytest.mark.slow, id="lecam unfused"),
    ],
)
def test_a_step_that_overflows_changes_nothing_but_the_scale(name, optimizer, tmp_path):
    scale, ema, rows = Scale(2.0**20), EMA(0.9), []
    guard = [SkipBadSteps(str(tmp_path))] if optimizer is FUSED else []
    stage = STAGES[name](optimizer=optimizer)
    stage.log_row = rows.append
    averages = []

    class Averages(Callback):
        def on_train_batch_end(self, *_) -> None:
            averages.append({key: value.clone() for key, value in ema.averages.items()})

    batches = [tiny.batch(4, first=4 * i) for i in range(10)]
    trainer = tiny.fit(stage, batches, [ema, Averages(), scale, *guard], precision="16-mixed")
    skipped = scale.overflows[-1]
    assert 2 <= skipped <= 8 and scale.factors[-1] == 2.0 ** (20 - skipped)
    for step, (before, after) in enumerate(zip(scale.weights[:-1], scale.weights[1:], strict=True)):
        overflowed = scale.overflows[step] > (scale.overflows[step - 1] if step else 0)
        assert all(torch.equal(before[key], after[key]) for key in before) == overflowed, step
        if step:
            same = all(torch.equal(averages[step - 1][key], averages[step][key]) for key in averages[step])
            assert same == overflowed, step
    state = next(iter(trainer.optimizers[0].state.values()))
    assert state["step"] == 10 - skipped
    assert rows[-1]["train/overflowed_steps"] == skipped
    assert rows[-1]["train/loss_scale"] == scale.factors[-1]
    if guard:
        assert guard[0].state["skipped"] == 0 and guard[0].state["seen"][0] == 10 - skipped


@pytest.mark.parametrize(("factor", "overflows"), [(1.0, 0), (16.0, 1)])
def test_bad_gradients_are_the_guards_business_at_scale_1_only(factor, overflows, tmp_path):
    guard, scale = SkipBadSteps(str(tmp_path), max_share=1.0), Scale(factor)
    batches = [tiny.batch(2, first=2 * i) for i in range(3)]
    tiny.fit(second_stage(), batches, [guard, scale, Poison(1)], precision="16-mixed")
    assert scale.overflows[-1] == overflows and guard.state["skipped"] == 1 - overflows
    assert all(torch.equal(scale.weights[1][key], scale.weights[2][key]) for key in scale.weights[1])
    assert all(value.isfinite().all() for value in scale.weights[-1].values())


@pytest.mark.parametrize("build", [first_stage, pytest.param(second_stage, marks=pytest.mark.slow)])
def test_a_resumed_run_continues_with_the_same_scale_bit_for_bit(build, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**20)
    data, weights = tiny.data(tmp_path, 10), []
    for steps, resume, folder in ((10, False, "straight"), (7, False, "parts"), (10, True, "parts")):
        torch.manual_seed(0)
        stage, saver = build(), Checkpoint(str(tmp_path / folder))
        path = newest_checkpoint(tmp_path / folder) if resume else None
        tiny.trainer(steps, [saver], precision="16-mixed").fit(stage, data, ckpt_path=path)
        weights.append(tiny.snapshot(stage) | stage.loss_scale.checkpoint())
    straight, half, resumed = weights
    assert half["factor"] < 2.0**20 and half["finite_steps"] > 0, "the checkpoint has a scale of its own"
    assert [key for key in straight if not torch.equal(straight[key], resumed[key])] == []


def test_a_run_may_change_to_and_from_fp16(tmp_path):
    data = tiny.data(tmp_path, 6)
    for steps, precision in ((2, "32-true"), (4, "16-mixed"), (6, "32-true")):
        path = newest_checkpoint(tmp_path / "c")
        stage = second_stage()
        trainer = tiny.trainer(steps, [Checkpoint(str(tmp_path / "c"))], precision=precision)
        trainer.fit(stage, data, ckpt_path=path)
        assert (stage.loss_scale is not None) == (precision == "16-mixed") and trainer.global_step == steps


@pytest.mark.multiprocess
def test_two_ranks_skip_the_same_steps(tmp_path):
    log, data = tmp_path / "metrics.csv", tiny.data(tmp_path / "shards", 4)
    trainer = tiny.trainer(4, [Poison(1)], log, processes=2, precision="16-mixed")  # only rank 1's images
    trainer.fit(second_stage(), data)
    overflows = tiny.read_column(log, "train/overflowed_steps")
    factors = tiny.read_column(log, "train/loss_scale")  # the mean over ranks
    assert overflows[2] == overflows[1] + 1
    assert all(factors[step] == 2.0 ** (16 - overflows[step]) for step in overflows)
    assert tiny.read_column(log, "train/loss")[4] > 0
