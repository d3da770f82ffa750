"""EMA: its formula, the parameters it averages, and that swapping weights has no side effects."""

import pytest
import torch

from ldm.callbacks.ema import EMA, find_ema, use_ema_weights
from tests.support import tiny


class History(torch.nn.Module):
    """Copies the trained parameters after every step."""

    def __init__(self, stage) -> None:
        super().__init__()
        self.steps = [self.copy(stage)]
        stage.on_train_batch_end = lambda *_: self.steps.append(self.copy(stage))

    @staticmethod
    def copy(stage):
        return {name: p.detach().clone() for name, p in stage.averaged_parameters().items()}


def train(steps: int = 5, decay: float = 0.5, start: int = 0):
    stage, ema = tiny.second_stage(), EMA(decay, start)
    history = History(stage)
    tiny.fit(stage, [tiny.batch(2)] * steps, [ema])
    return stage, ema, history.steps


def test_equals_its_formula():
    _, ema, history = train(steps=5, decay=0.3)
    expected = {name: p.double() for name, p in history[0].items()}
    decays = [min(0.3, (1 + n) / (10 + n)) for n in (1, 2, 3, 4, 5)]
    assert decays[0] < 0.3 and decays[-1] == 0.3, "both branches of the decay count"
    for decay, parameters in zip(decays, history[1:], strict=True):
        expected = {name: decay * e + (1 - decay) * parameters[name] for name, e in expected.items()}
    assert ema.num_updates == 5
    for name, value in ema.averages.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_equals_the_parameters_until_it_starts():
    _, ema, history = train(steps=2, start=2)
    assert all(torch.equal(value, history[2][name]) for name, value in ema.averages.items())
    _, ema, history = train(steps=4, decay=0.9, start=2)
    expected = {name: p.double() for name, p in history[2].items()}
    for decay, parameters in zip((2 / 11, 3 / 12), history[3:], strict=True):
        expected = {name: decay * e + (1 - decay) * parameters[name] for name, e in expected.items()}
    for name, value in ema.averages.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="a step >= 0, not -1"):
        EMA(0.5, start=-1)


def test_averages_only_trainable_parameters():
    stage, ema, _ = train(1)
    names = set(ema.averages)
    assert names == {name for name, p in stage.model.named_parameters() if p.requires_grad}
    assert names and not any(name.startswith("first_stage.") for name in names)
    assert all(value.dtype == torch.float32 for value in ema.averages.values())


@pytest.mark.parametrize("fails", [False, True])
def test_parameters_are_restored_bit_for_bit(fails):
    stage, ema, history = train()
    before = tiny.snapshot(stage)
    try:
        with ema.use_averages(stage):
            for name, p in stage.averaged_parameters().items():
                assert torch.equal(p, ema.averages[name])
            assert tiny.changed_names(stage, before)
            if fails:
                raise RuntimeError("the disk is full")
    except RuntimeError:
        assert fails
    assert not tiny.changed_names(stage, before)
    assert all(torch.equal(p, history[-1][name]) for name, p in stage.averaged_parameters().items())


def test_continues_from_its_state():
    stage, ema, _ = train()
    other = EMA(0.5)
    other.load_state_dict(ema.state_dict())
    other.on_fit_start(tiny.trainer(1), stage)
    assert other.num_updates == 5
    assert all(torch.equal(other.averages[name], value) for name, value in ema.averages.items())
    assert all(other.averages[name] is not value for name, value in ema.averages.items())


def test_a_run_without_ema_uses_its_parameters():
    stage = tiny.first_stage()
    trainer = tiny.trainer(1)
    before = tiny.snapshot(stage)
    with use_ema_weights(trainer, stage):
        assert not tiny.changed_names(stage, before)
    assert find_ema(trainer) is None
    assert isinstance(find_ema(tiny.trainer(1, [EMA()])), EMA)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=rf"\[0, 1\), not {decay}"):
        EMA(decay)
