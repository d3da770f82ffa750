"""Steps with bad gradients are skipped."""

from functools import partial

import pytest
import torch

from ldm.callbacks.checkpoint import Checkpoint
from ldm.callbacks.skip_bad_steps import SkipBadSteps
from ldm.errors import UserError
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
    poison, skipper, rows = PoisonAndRecord(2), SkipBadSteps(str(tmp_path)), []
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
        [SkipBadSteps(str(tmp_path), every_n_steps=3), PoisonTwice(1)],
    )
    assert [r.getMessage() for r in caplog.records if r.name == "ldm.callbacks.skip_bad_steps"] == [
        "skipped 1 step(s), 1 in all; the latest: 1 (positions 2 to 3)",
        "skipped 1 step(s), 2 in all; the latest: 4 (positions 8 to 9)",
    ]


def skipper_with_state(**options) -> SkipBadSteps:
    skipper = SkipBadSteps("nowhere", **options)
    skipper.state = {"log_mean": torch.zeros(2), "seen": torch.zeros(2)}
    skipper.state |= {"skipped": torch.tensor(0.0), "in_a_row": torch.tensor(0.0)}
    skipper.state["steps"] = torch.zeros(8, dtype=torch.int64)
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
        UserError, match="last 3 steps up to 6 were skipped.*resume=.*step00000002.ckpt"
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


@pytest.mark.parametrize("options", [{"factor": 1}, {"window": 0}, {"patience": 0}, {"warmup": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="needs factor > 1, .*, not "):
        SkipBadSteps("nowhere", **options)
