"""Steps with bad gradients are skipped."""

from functools import partial

import pytest
import torch

from ldm.callbacks.checkpoint import Checkpoint
from ldm.callbacks.loggers.csv import CSVLogger
from ldm.callbacks.skip_bad_steps import SkipBadSteps
from ldm.errors import Diverged, UserError
from ldm.losses.adversary import Adversary
from ldm.losses.regularizers import LeCam
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.discriminator import PatchDiscriminator
from ldm.networks.patch_autoencoder import PatchDecoder, PatchEncoder
from ldm.networks.vector_quantizer import VQBottleneck
from tests.support import tiny
from tests.support.ranks import Poison

FUSED = partial(torch.optim.Adam, lr=3e-3, fused=True)


class PoisonAndRecord(Poison):
    """Also copies the weights and moments after each step."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.weights = []

    def on_train_batch_end(self, trainer, stage, *_) -> None:
        super().on_train_batch_end(trainer, stage)
        optimizers = [o.state_dict()["state"] for o in trainer.optimizers]
        moments = {
            f"{i}/{j}/{k}": v.clone()
            for i, o in enumerate(optimizers)
            for j, s in o.items()
            for k, v in s.items()
        }
        self.weights.append(tiny.snapshot(stage) | moments)


def stage_with_lecam_and_codebook():
    """A stage 1 whose regularizer and codebook change outside the optimizers; codes revive every step."""
    encoder = PatchEncoder(patch=4, channels=16, num_res_blocks=1, out_channels=4)
    decoder = PatchDecoder(patch=4, channels=16, num_res_blocks=1, in_channels=4)
    model = Autoencoder(encoder, decoder, VQBottleneck(4, 64, revive_after=1))
    discriminator = PatchDiscriminator(channels=4, num_layers=1)
    adversary = Adversary(discriminator, 0.5, start=0, warmup=0, ramp_steps=0, regularizer=LeCam(0.1))
    return tiny.first_stage(model, adversary, FUSED)


@pytest.mark.parametrize(
    "stage",
    [
        stage_with_lecam_and_codebook,
        lambda: tiny.first_stage(adversary=tiny.adversary(start=0), optimizer=FUSED),
        lambda: tiny.second_stage(optimizer=FUSED),
    ],
    ids=["lecam and codebook", "first", "second"],
)
def test_a_step_on_nan_changes_nothing_and_training_continues(stage, tmp_path):
    poison, skipper, rows = PoisonAndRecord(2), SkipBadSteps(str(tmp_path), max_share=0.2), []
    stage = stage()
    stage.log_row = lambda values: rows.append(float(values["train/skipped_steps"]))
    tiny.fit(stage, [tiny.batch(2, first=2 * i) for i in range(5)], [skipper, poison])
    after = poison.weights
    assert all(torch.equal(after[1][key], after[2][key]) for key in after[1])
    assert any(not torch.equal(after[2][key], after[3][key]) for key in after[2])
    assert all(value.isfinite().all() for value in after[4].values())
    assert rows == [0, 0, 1, 1, 1]
    assert int(skipper.state["skipped"]) == 1 and int(skipper.state["in_a_row"]) == 0


def test_warnings_list_skipped_steps_and_their_positions(tmp_path, caplog):
    class PoisonTwice(Poison):
        def on_train_batch_start(self, trainer, stage, *_) -> None:
            self.step = 4 if trainer.global_step >= 2 else 1
            super().on_train_batch_start(trainer, stage)

    batches = [tiny.batch(2, first=2 * i) for i in range(6)]
    tiny.fit(
        tiny.first_stage(optimizer=FUSED),
        batches,
        [SkipBadSteps(str(tmp_path), every_n_steps=3, max_share=0.4), PoisonTwice(1)],
    )
    assert [r.getMessage() for r in caplog.records if r.name == "ldm.callbacks.skip_bad_steps"] == [
        "skipped 1 step(s), 1 in all; the latest: 2 (positions 2 to 3)",
        "skipped 1 step(s), 2 in all; the latest: 5 (positions 8 to 9)",
    ]


def skipper_with_state(**options) -> SkipBadSteps:
    skipper = SkipBadSteps("nowhere", **options)
    trainer, stage = tiny.trainer(1), tiny.first_stage(adversary=tiny.adversary(), optimizer=FUSED)
    trainer.strategy.optimizers = [FUSED(stage.model.parameters()), FUSED(stage.adversary.parameters())]
    skipper.on_fit_start(trainer, stage)
    return skipper


def decisions(skipper: SkipBadSteps, *norms: tuple[float, float]) -> list[int]:
    return [int(skipper.check_norms(torch.tensor(pair).float())) for pair in norms]


def test_a_spike_is_measured_against_the_geometric_mean():
    skipper = skipper_with_state(factor=10, warmup=2, window=100)
    assert decisions(skipper, (1, 1), (100, 1)) == [0, 0], "no spike is detected yet"
    torch.testing.assert_close(skipper.state["log_mean"].exp(), torch.tensor([10.0, 1.0]))
    assert decisions(skipper, (99, 1), (9, 11), (101, 1), (9, 9)) == [0, 1, 0, 0]
    assert skipper.state["skipped"] == 1 and skipper.state["in_a_row"] == 0
    assert decisions(skipper, (float("nan"), 1), (1, float("inf")), (1e9, 1)) == [1, 1, 1]
    assert skipper.state["skipped"] == 4 and skipper.state["in_a_row"] == 3
    assert skipper.state["log_mean"].isfinite().all()


def test_a_discriminator_that_is_not_trained_does_not_enter_the_mean():
    skipper = skipper_with_state(factor=10, warmup=2)
    assert decisions(skipper, *[(1, 0)] * 20, (1, 5), (1, 5), (1, 49), (1, 500)) == [0] * 23 + [1]
    assert skipper.state["seen"].tolist() == [23, 3]


def test_the_mean_is_over_a_window():
    skipper = skipper_with_state(factor=10, warmup=0, window=5)
    decisions(skipper, *[(1, 1)] * 50, *[(8, 8)] * 30)
    assert skipper.state["log_mean"].exp()[0] > 7.9


def test_too_many_in_a_row_end_the_run_and_name_the_last_good_checkpoint(tmp_path):
    skipper = SkipBadSteps(str(tmp_path), patience=3, every_n_steps=2)
    saver = Checkpoint(str(tmp_path), every_n_steps=2, keep=9)

    class PoisonAlways(Poison):
        def on_train_batch_start(self, trainer, stage, *_) -> None:
            self.step = max(trainer.global_step, 3)
            super().on_train_batch_start(trainer, stage)

    stage = tiny.first_stage(optimizer=FUSED)
    with pytest.raises(
        Diverged, match="last 3 steps up to 6 were skipped.*resume=.*step00000002.ckpt"
    ) as caught:
        tiny.fit(stage, [tiny.batch(1)] * 9, [skipper, PoisonAlways(3), saver])
    assert "optimizer.lr" in str(caught.value)


def test_a_resumed_run_keeps_the_running_mean(tmp_path):
    skipper = skipper_with_state()
    decisions(skipper, (1, 2), (3, 4))
    other = SkipBadSteps("nowhere")
    other.load_state_dict(skipper.state_dict())
    trainer = tiny.trainer(1)
    stage = tiny.first_stage(adversary=tiny.adversary(), optimizer=FUSED)
    trainer.strategy.optimizers = [FUSED(stage.model.parameters()), FUSED(stage.adversary.parameters())]
    other.on_fit_start(trainer, stage)
    assert all(torch.equal(other.state[k], v) for k, v in skipper.state.items())
    assert stage.step_guard == other.check_norms


def test_needs_a_fused_optimizer(tmp_path):
    with pytest.raises(UserError, match="optimizer.fused=true"):
        tiny.fit(tiny.first_stage(), [tiny.batch(1)], [SkipBadSteps(str(tmp_path))])


class PoisonFrom(Poison):
    """NaN weights in these steps, counted from 0."""

    def __init__(self, bad: range) -> None:
        super().__init__(-1)
        self.bad = bad

    def on_train_batch_start(self, trainer, stage, *_) -> None:
        self.step = trainer.global_step if trainer.global_step in self.bad else -1
        super().on_train_batch_start(trainer, stage)


def test_a_finished_run_that_skipped_most_steps_has_diverged_but_wrote_its_checkpoint(
    tmp_path, caplog, monkeypatch
):
    """Fewer skipped steps than `patience`, none of them at a step where warnings are due."""
    ends = []
    monkeypatch.setattr(CSVLogger, "finalize", lambda self, status: ends.append(status))
    saver = Checkpoint(str(tmp_path), every_n_steps=2, keep=9)
    callbacks = [SkipBadSteps(str(tmp_path)), PoisonFrom(range(4, 9)), saver]
    expected = (
        r"^5 of 10 steps were skipped \(the first was 5, the last 9\), more than callbacks.skip_bad_steps"
        r".max_share=0.1, since .*: resume from the last good one, resume=\S*step00000004.ckpt run="
    )
    trainer = tiny.trainer(10, callbacks, tmp_path / "metrics.csv")
    with pytest.raises(Diverged, match=expected):
        trainer.fit(tiny.first_stage(optimizer=FUSED), tiny.data(tmp_path / "shards", 10))
    assert ends == ["failed"], "as W&B shows the run"
    assert (tmp_path / "step00000010.ckpt").is_file()
    assert "skipped 5 step(s), 5 in all" in caplog.text, "also the steps after the last warning"


def test_a_finished_run_that_skipped_few_steps_has_not_diverged(tmp_path):
    skipper = SkipBadSteps(str(tmp_path))
    tiny.fit(tiny.first_stage(optimizer=FUSED), [tiny.batch(1)] * 10, [skipper, PoisonFrom(range(4, 5))])
    assert int(skipper.state["skipped"]) == 1, "a tenth"


def test_a_long_run_has_diverged_if_it_skipped_most_of_its_latest_steps(monkeypatch):
    """150 of 10,000 steps, all of them among the last 1,000, and never 50 in a row; then none for long."""
    skipper, trainer, stage = skipper_with_state(), tiny.trainer(1), tiny.first_stage()
    monkeypatch.setattr(type(trainer), "global_step", 10_000)
    for step in range(9001, 10_001):
        skipper._step = step
        skipper.check_norms(torch.tensor([float("nan") if step > 9700 and step % 2 else 1.0, 1.0]))
    with pytest.raises(Diverged, match=r"^150 of 10,000 steps .*\(13% of the latest; the first was 9,701"):
        skipper.on_fit_end(trainer, stage)
    for _ in range(300):
        skipper.check_norms(torch.ones(2))
    skipper.on_fit_end(trainer, stage)


def test_a_resumed_run_counts_the_steps_skipped_before(tmp_path):
    """Its own steps are all good; a run that is already finished reports the same again."""
    shards, saver = tmp_path / "shards", partial(Checkpoint, str(tmp_path), every_n_steps=9)

    def train(max_steps: int, resume: str | None, *callbacks) -> None:
        trainer = tiny.trainer(max_steps, [SkipBadSteps(str(tmp_path)), *callbacks, saver()])
        stage = tiny.second_stage(optimizer=FUSED)
        trainer.fit(stage, tiny.data(shards, max_steps), ckpt_path=resume, weights_only=True)

    for steps, resume, poison in ((4, None, range(2, 4)), (4, "4", ()), (19, "4", ())):
        path = None if resume is None else str(tmp_path / f"step{int(resume):08d}.ckpt")
        with pytest.raises(
            Diverged, match=rf"^2 of {steps} steps were skipped \(the first was 3, the last 4"
        ):
            train(steps, path, PoisonFrom(poison))
    train(20, str(tmp_path / "step00000019.ckpt"))


@pytest.mark.parametrize(
    "options", [{"factor": 1}, {"window": 0}, {"patience": 0}, {"warmup": -1}, {"max_share": 1.1}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="needs factor > 1, .*, not "):
        SkipBadSteps("nowhere", **options)
