"""Stage 2: the random numbers of training, what validation measures, and a learned weighting."""

import csv
from functools import partial

import pytest
import torch

from ldm.callbacks.ema import EMA
from ldm.diffusion.objective import diffusion_loss
from ldm.diffusion.parameterization import EDM, Flow, V
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.schedule import Cosine, Karras, RectifiedFlow
from ldm.diffusion.times import LogitNormalTimes, LogNormalTimes, ShiftedTimes, karras
from ldm.diffusion.weighting import LearnedUncertainty, MinSNR, Uniform
from ldm.model import LatentDiffusion
from ldm.stages.latent_diffusion import LatentDiffusionStage
from tests.support import tiny


@pytest.fixture
def objective_calls(monkeypatch):
    """Records the objective's z_0, eps, u and input_noise by name, one dict per call."""
    calls = []

    def spy(network, z_0, cond, eps, u, schedule, parameterization, weighting, times, input_noise=0.0):
        calls.append({"z_0": z_0, "eps": eps, "u": u, "input_noise": input_noise})
        at = schedule, parameterization, weighting, times
        return diffusion_loss(network, z_0, cond, eps, u, *at, input_noise)

    monkeypatch.setattr("ldm.stages.latent_diffusion.diffusion_loss", spy)
    return calls


OPTIONS = {"strata": 6, "offset_noise": 0.1, "input_perturbation": 0.2}


def test_without_options_noise_and_time_are_the_keyed_random_numbers(objective_calls):
    stage, batch = tiny.second_stage(), tiny.batch(6)
    stage.training_losses(batch)
    assert torch.equal(objective_calls[0]["eps"], stage.normal(batch, "eps", (4, 4, 4)))
    assert (
        torch.equal(objective_calls[0]["u"], stage.uniform(batch, "u"))
        and objective_calls[0]["input_noise"] == 0
    )


def test_options_follow_positions_and_not_ranks(objective_calls):
    stage = tiny.second_stage(**OPTIONS)
    for batch in (tiny.batch(6, 12), tiny.batch(3, 12), tiny.batch(3, 15)):
        stage.training_losses(batch)
    whole, *halves = objective_calls
    for name in ("z_0", "eps", "u", "input_noise"):
        assert torch.equal(whole[name], torch.cat([half[name] for half in halves])), name


def test_strata_offset_and_perturbation_have_the_stated_size(objective_calls):
    stage, batch = tiny.second_stage(**OPTIONS), tiny.batch(6, 12)
    stage.training_losses(batch)
    call = objective_calls[0]
    assert (call["u"] * 6).floor().tolist() == [0, 1, 2, 3, 4, 5]
    offset = call["eps"] - stage.normal(batch, "eps", (4, 4, 4))
    assert offset.flatten(2).std(2).max() < 1e-6, "one number per channel"
    assert offset[:, :, 0, 0].std().item() == pytest.approx(0.1, rel=0.4)
    assert call["input_noise"].std().item() == pytest.approx(0.2, rel=0.1)
    assert not torch.equal(call["input_noise"] / 0.2, call["eps"]), "of another stream than eps"


def test_options_do_not_affect_validation(objective_calls):
    torch.manual_seed(0)
    plain = tiny.second_stage()
    other = tiny.second_stage(plain.model, weighting=LearnedUncertainty(Uniform()), **OPTIONS)
    torch.nn.init.ones_(other.weighting.weight)
    assert torch.equal(*(s.validation_losses(tiny.batch(6))[0].mean() for s in (plain, other)))
    assert torch.equal(objective_calls[0]["eps"], objective_calls[1]["eps"]) and torch.equal(
        objective_calls[0]["u"], objective_calls[1]["u"]
    )
    assert objective_calls[1]["input_noise"] == 0


def expected_losses(stage, batches) -> dict[str, float]:
    """What validation should log, computed image by image."""
    with torch.no_grad():
        pairs = [stage.validation_losses(batch) for batch in batches]
    losses, u = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
    bins = [losses[(u * 10).floor() == i] for i in range(10)]
    return {"loss": losses.mean().item()} | {
        f"loss_{i}": values.mean().item() for i, values in enumerate(bins) if len(values)
    }


def test_validation_logs_every_noise_level_for_averaged_and_raw_weights(tmp_path):
    stage, ema = tiny.second_stage(), EMA(0.9)
    data, log = tiny.data(tmp_path / "shards", 3), tmp_path / "metrics.csv"
    tiny.trainer(3, [ema], log, validate_every=3).fit(stage, data)
    batches = list(data.val_dataloader())
    stage.eval()
    raw = expected_losses(stage, batches)
    with ema.use_averages(stage):
        averaged = expected_losses(stage, batches)
    assert len(raw) > 5 and raw["loss"] != averaged["loss"]
    for prefix, expected in (("val", averaged), ("val/raw", raw)):
        for name, value in expected.items():
            assert tiny.read_column(log, f"{prefix}/{name}") == {3: pytest.approx(value, rel=1e-5)}
    columns = next(csv.reader(log.open()))
    assert sum(c.startswith("val/raw/") for c in columns) == len(raw)
    assert sum(c.startswith("val/") for c in columns) == len(raw) + len(averaged)


def test_validation_without_ema_measures_the_raw_weights(tmp_path):
    stage, log = tiny.second_stage(), tmp_path / "metrics.csv"
    data = tiny.data(tmp_path / "shards", 1)
    tiny.trainer(1, [], log, validate_every=1).fit(stage, data)
    stage.eval()
    assert tiny.read_column(log, "val/loss")[1] == pytest.approx(
        expected_losses(stage, list(data.val_dataloader()))["loss"], rel=1e-5
    )
    assert not any(c.startswith("val/raw") for c in next(csv.reader(log.open())))


def test_validation_does_not_change_training(tmp_path):
    finals = []
    for every in (1, 10**6):
        torch.manual_seed(0)
        stage = tiny.second_stage()
        ema = EMA(0.9)
        tiny.trainer(3, [ema], validate_every=every).fit(stage, tiny.data(tmp_path / "shards", 3))
        finals.append((tiny.snapshot(stage), ema.averages))
    for ours, theirs in zip(*finals, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_sums_over_two_ranks_equal_those_of_one():
    whole, parts = tiny.second_stage(), tiny.second_stage()
    parts.model.load_state_dict(whole.model.state_dict())
    with torch.no_grad():
        whole.measure(tiny.batch(8), "val")
        for first in (0, 4):
            parts.measure(tiny.batch(4, first), "val")
    torch.testing.assert_close(
        whole.validation_sums["val"], parts.validation_sums["val"], rtol=1e-5, atol=1e-6
    )
    assert torch.equal(whole.validation_sums["val"][1], parts.validation_sums["val"][1])


@pytest.mark.multiprocess
def test_two_processes_measure_what_one_does(tmp_path):
    logs = []
    for processes in (1, 2):
        torch.manual_seed(0)
        log = tmp_path / f"{processes}.csv"
        trainer = tiny.trainer(2, [EMA(0.9)], log, validate_every=1, processes=processes)
        trainer.fit(tiny.second_stage(), tiny.data(tmp_path / "shards", 2))
        logs.append(log)
    columns = [c for c in next(csv.reader(logs[0].open())) if c.startswith("val/")]
    assert len(columns) > 10 and columns == [
        c for c in next(csv.reader(logs[1].open())) if c.startswith("val/")
    ]
    for name in columns:
        single, double = (tiny.read_column(log, name) for log in logs)
        assert single.keys() == double.keys() == {1, 2}, name
        assert double == pytest.approx(single, rel=1e-4), name


def test_a_learned_uncertainty_is_trained_and_neither_averaged_nor_exported():
    stage, ema = tiny.second_stage(weighting=LearnedUncertainty(Uniform())), EMA(0.9)
    before = tiny.snapshot(stage)
    optimizer = stage.configure_optimizers()["optimizer"]
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in [*stage.averaged_parameters().values(), stage.weighting.weight]}
    tiny.fit(stage, [tiny.batch(4)] * 3, [ema])
    assert "weighting.weight" in tiny.changed_names(stage, before), "and so a checkpoint has it"
    assert not any("weighting" in name for name in [*ema.averages, *stage.exported_tensors()])


@pytest.mark.parametrize("option", [{"strata": 0}, {"offset_noise": -0.1}, {"input_perturbation": -1.0}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=r"strata=\S+ .*offset_noise=\S+ .*input_perturbation=\S+"):
        tiny.second_stage(**option)


def test_min_snr_without_a_least_weight_is_refused_at_zero_terminal_snr():
    parts, zero = tiny.diffusion(), Cosine(100, zero_terminal_snr=True)
    model = LatentDiffusion(parts.denoiser, parts.first_stage, parts.conditioner, zero, V())
    with pytest.raises(ValueError, match=r"weight is 0 at T, where sampling starts: .*weighting.least=0.005"):
        tiny.second_stage(model, weighting=MinSNR(V()))
    assert isinstance(tiny.second_stage(model, weighting=MinSNR(V(), least=0.005)), LatentDiffusionStage)


RECIPES = {
    "EDM": (Karras(100), EDM(), lambda s: LogNormalTimes(s)),
    "flow": (RectifiedFlow(100), Flow(), lambda s: ShiftedTimes(LogitNormalTimes(100), 100)),
    "zero terminal SNR": (Cosine(100, zero_terminal_snr=True), V(), lambda s: LogNormalTimes(s)),
}
"""Each with its own distribution of times."""


@pytest.mark.parametrize("name", RECIPES)
def test_other_recipes_learn_and_sample(name):
    schedule, parameterization, times = RECIPES[name]
    parts = tiny.diffusion()
    model = LatentDiffusion(parts.denoiser, parts.first_stage, parts.conditioner, schedule, parameterization)
    stage = tiny.second_stage(model, optimizer=partial(torch.optim.Adam, lr=1e-2))
    stage.times = times(schedule)
    losses = []
    stage.log_row = lambda values: losses.append(float(values["train/loss"]))
    tiny.fit(stage, [tiny.batch(4)] * 40)
    assert sum(losses[-5:]) < sum(losses[:5]) / 2
    batch = {"caption": ["a red square", "a blue square"]}
    images = model.eval().generate(
        batch, [0, 1], (16, 16), sampler=ddim, times=karras(schedule, 8), scale=2.0
    )
    assert images.isfinite().all() and images.std() > 0.05
