"""Profiles in closed form, averages with these profiles, and any other length from their snapshots."""

import math

import pytest
import torch
from torch import Tensor

from ldm.callbacks.posthoc_ema import (
    LONGEST,
    PostHocEMA,
    Profile,
    combine,
    fit_weights,
    gamma_from_length,
    list_snapshots,
)
from ldm.errors import UserError
from ldm.interop import model_file
from tests.callbacks.test_ema import History
from tests.support import tiny


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94), (0.15, 3.56), (LONGEST, 0.0)])
def test_gammas_are_those_of_the_paper(length: float, gamma: float) -> None:
    assert gamma_from_length(length) == pytest.approx(gamma, abs=0.01)
    g = gamma_from_length(length)
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    p = (g + 1) * t**g
    mean = torch.trapezoid(p * t, t)
    std = torch.trapezoid(p * (t - mean) ** 2, t).sqrt().item()
    assert std == pytest.approx(length, rel=1e-4), "the profile's own standard deviation"


@pytest.mark.parametrize("length", [0.0, -0.1, 0.3])
def test_a_length_outside_its_range_is_refused(length: float) -> None:
    with pytest.raises(ValueError, match=rf"\(0, 0\.2887\], not {length}"):
        gamma_from_length(length)


def test_products_of_profiles_are_their_integrals() -> None:
    a, b = Profile(300, 6.9), Profile(700, 2.5)
    t = torch.linspace(0, 300, 300_001, dtype=torch.float64)
    product = (
        (a.gamma + 1) * t**a.gamma / 300 ** (a.gamma + 1) * (b.gamma + 1) * t**b.gamma / 700 ** (b.gamma + 1)
    )
    assert a.dot(b) == b.dot(a) == pytest.approx(torch.trapezoid(product, t).item(), rel=1e-6)


def test_a_profile_among_the_snapshots_is_reproduced() -> None:
    profiles = [Profile(n, gamma_from_length(length)) for n in (100, 200, 300) for length in (0.05, 0.1)]
    x, error = fit_weights(profiles, profiles[3])
    assert error < 1e-6 and x == pytest.approx([0, 0, 0, 1, 0, 0], abs=1e-6)


def weights_of_steps(steps: int, gamma: float) -> Tensor:
    """Return the weight of every step under the recursion."""
    weights = torch.zeros(steps, dtype=torch.float64)
    for n in range(1, steps + 1):
        beta = (1 - 1 / n) ** (gamma + 1)
        weights *= beta
        weights[n - 1] = 1 - beta
    return weights


def test_other_lengths_are_combined_from_two() -> None:
    """The parameters are a random walk with drift; 16 snapshots, lengths from 0.04 to 0.2."""
    steps, every = 4096, 256
    g = torch.Generator().manual_seed(0)
    path = torch.randn(steps, 64, generator=g, dtype=torch.float64).cumsum(0) / 10
    path += torch.linspace(0, 4, steps, dtype=torch.float64)[:, None].sqrt()
    profiles = [
        Profile(n, gamma_from_length(length))
        for n in range(every, steps + 1, every)
        for length in (0.05, 0.1)
    ]
    averages = torch.stack([weights_of_steps(p.steps, p.gamma) @ path[: p.steps] for p in profiles])
    averages = averages.float().double()  # as precise as in a snapshot
    for length in (0.04, 0.05, 0.075, 0.12, 0.2):
        x, profile_error = fit_weights(profiles, Profile(steps, gamma_from_length(length)))
        direct = weights_of_steps(steps, gamma_from_length(length)) @ path
        combined = torch.tensor(x, dtype=torch.float64) @ averages
        error = ((combined - direct).norm() / (path[-1] - direct).norm()).item()
        assert profile_error < 0.025 and error < 0.005, (length, profile_error, error)


def trained(folder, steps: int = 6, every: int = 2, lengths=(0.05, 0.1)):
    stage, ema = tiny.second_stage(), PostHocEMA(str(folder), lengths, every)
    history = History(stage)
    tiny.fit(stage, [tiny.batch(2)] * steps, [ema])
    return stage, ema, history.steps


def test_the_callback_keeps_averages_and_snapshots(tmp_path) -> None:
    stage, ema, history = trained(tmp_path)
    names = {name for name, p in stage.model.named_parameters() if p.requires_grad}
    assert set(ema.averages[0]) == set(ema.averages[1]) == names
    for gamma, average in zip(ema.gammas, ema.averages, strict=True):
        weights = weights_of_steps(6, gamma)
        for name, value in average.items():
            assert value.dtype == torch.float32
            expected = sum(w * step[name].double() for w, step in zip(weights, history[1:], strict=True))
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    saved = list_snapshots(tmp_path)
    assert [(s.step, [p.steps for p in s.profiles]) for s in saved] == [(2, [2, 2]), (4, [4, 4]), (6, [6, 6])]
    assert [p.gamma for p in saved[0].profiles] == ema.gammas
    last = combine(saved, [0, 0, 0, 0, 0, 1])
    assert last.keys() == names
    assert all(torch.equal(last[name], ema.averages[1][name]) for name in names)
    half = combine(saved[-1:], [0.5, 0.5])
    name = min(names)
    torch.testing.assert_close(half[name], (ema.averages[0][name] + ema.averages[1][name]) / 2)


def test_resumes_bit_for_bit(tmp_path) -> None:
    """From its own state, saved in plain types as in a checkpoint."""
    _, straight, history = trained(tmp_path / "straight", 6)
    other, stage = PostHocEMA(str(tmp_path / "other"), (0.05, 0.1), 100), tiny.second_stage()
    trainer = tiny.trainer(100)

    def replay(ema: PostHocEMA, steps) -> None:
        for values in steps:
            for name, p in stage.averaged_parameters().items():
                p.data.copy_(values[name])
            ema.on_train_batch_end(trainer, stage)

    other.on_fit_start(trainer, stage)
    replay(other, history[1:4])
    torch.save(other.state_dict(), tmp_path / "state.pt")
    again = PostHocEMA(str(tmp_path / "again"), (0.05, 0.1), 100)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    again.on_fit_start(trainer, stage)
    replay(again, history[4:])
    assert again.num_updates == 6
    for ours, theirs in zip(again.averages, straight.averages, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(UserError, match="callbacks.post_hoc.lengths"):
        PostHocEMA("x", (0.05, 0.2), 1).load_state_dict(again.state_dict())


def test_user_errors_name_the_problem(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no EMA snapshots .* callbacks=post_hoc"):
        list_snapshots(tmp_path)
    with pytest.raises(ValueError, match=r"every_n_steps >= 1 and one length or more, not 0 and \[0\.1\]"):
        PostHocEMA("x", [0.1], 0)
    with pytest.raises(ValueError, match="not 1 and"):
        PostHocEMA("x", [], 1)
    model_file.save(tmp_path / "step00000001.safetensors", {}, {}, "autoencoder", {})
    with pytest.raises(UserError, match="'ema_snapshot'"):
        list_snapshots(tmp_path)


def test_a_length_far_from_the_pair_needs_more_than_one_snapshot() -> None:
    profiles = [Profile(1000, gamma_from_length(length)) for length in (0.05, 0.1)]
    _, error = fit_weights(profiles, Profile(1000, gamma_from_length(0.2)))
    assert error > 0.1, "which the command prints"
    assert math.isfinite(error)
