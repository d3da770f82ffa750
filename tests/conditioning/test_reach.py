"""Every demo condition reaches the output: changing it changes the prediction, unless it is dropped."""

from functools import cache

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ldm.cli.config.compose import CONFIGS
from ldm.cli.config.instantiate import instantiate
from ldm.conditioning.base import Compose
from ldm.diffusion.parameterization import V
from ldm.diffusion.schedule import Cosine
from ldm.model import LatentDiffusion
from ldm.networks.unet import UNet
from ldm.typing import Conditioning
from tests.support.configs import options

DEMO = [name for name in options("conditioner") if name.startswith("demo/")]
WITHOUT_INPUT = {"coordinates"}
B, SIZE = 3, 64


def batch(seed: int = 0, size: int = SIZE, n: int = B):
    """Return a batch with every batch key, of random numbers."""
    g = torch.Generator().manual_seed(seed)

    def integers(high, *shape):
        return torch.randint(high, shape, generator=g)

    small = size // 4
    corners = torch.rand(n, 2, 4, generator=g)
    colours = ["red", "green", "blue", "yellow"]
    return {
        "caption": [f"a {colours[(i + seed) % 4]} circle on a white background" for i in range(n)],
        "label": (torch.arange(n) + seed) % 12,
        "image": integers(256, n, 3, size, size).byte(),
        "segmentation": integers(13, n, size, size).byte(),
        "mask": 255
        * integers(2, n, 1, size // 16, size // 16).byte().repeat_interleave(16, 2).repeat_interleave(16, 3),
        "masked": torch.rand(n, 3, size, size, generator=g) * 2 - 1,
        "small": integers(256, n, 3, small, small).byte(),
        "noise_level": integers(300, n) + 1,
        "noise": torch.randn(n, 3, small, small, generator=g),
        "boxes": torch.cat([integers(12, n, 2, 1).float(), corners], dim=2),
        "depth": torch.rand(n, 1, size, size, generator=g) * 2 - 1,
        "edges": torch.rand(n, 1, size, size, generator=g) * 2 - 1,
        "sizes": integers(512, n, 6).float(),
        "aesthetic": 10 * torch.rand(n, 1, generator=g),
    }


def randomize_zeros(module: nn.Module) -> nn.Module:
    """Replace zero-initialized weights, which would hide the condition."""
    for p in module.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return module


def conditioner(name: str) -> Compose:
    return instantiate(OmegaConf.load(CONFIGS / "conditioner" / f"{name}.yaml"))


def model_of(conditioner: Compose) -> LatentDiffusion:
    torch.manual_seed(0)
    null = conditioner.null(1, (8, 8))
    concat = 0 if null.concat is None else null.concat.shape[1]
    context, vector = (None if v is None else v.shape[-1] for v in (null.context, null.vector))
    unet = UNet(8 + concat, 8, 32, (1, 2), 1, (0, 1), 2, None, context, vector)
    first_stage = instantiate(OmegaConf.load(CONFIGS / "autoencoder" / "demo.yaml"))
    return randomize_zeros(
        LatentDiffusion(unet, first_stage, conditioner, Cosine(100, 0.008, 0.999), V()).eval()
    )


@cache
def model(name: str) -> LatentDiffusion:
    return model_of(conditioner(name))


def slots(cond: Conditioning) -> list[torch.Tensor]:
    return [v for v in (cond.context, cond.vector, cond.concat) if v is not None]


def same(a: Conditioning, b: Conditioning) -> bool:
    return all(torch.equal(x, y) for x, y in zip(slots(a), slots(b), strict=True))


def predict(model: LatentDiffusion, cond: Conditioning, size: int = 8) -> torch.Tensor:
    z_t = torch.randn(B, 8, size, size, generator=torch.Generator().manual_seed(1))
    return model.denoiser(z_t, torch.full((B,), 50.0), cond)


def conditions_with_input(name: str) -> list[str]:
    return sorted(set(model(name).conditioner.dropout_column) - WITHOUT_INPUT)


@pytest.mark.parametrize("name", DEMO)
@torch.no_grad()
def test_each_condition_changes_the_prediction_and_a_dropped_one_does_not(name):
    ours, original, other = model(name), batch(0), batch(1)
    before = predict(ours, ours.condition(original))
    for part in conditions_with_input(name):
        keys = ours.conditioner.conditioners[part].batch_keys
        changed = {**original, **{key: other[key] for key in keys}}
        change = (predict(ours, ours.condition(changed)) - before).flatten(1).norm(dim=1)
        assert (change > 1e-3).all(), f"{part} of a sample does not reach the output"
        rest = set(ours.conditioner.dropout_column) - {part}
        dropped = [predict(ours, ours.condition(x, active=rest)) for x in (original, changed)]
        assert torch.equal(*dropped), f"{part} was dropped but changes the output"
        assert not torch.equal(before, dropped[0])


@pytest.mark.parametrize("name", DEMO)
@torch.no_grad()
def test_dropping_all_conditions_gives_the_null(name):
    ours = model(name)
    n = len(ours.conditioner)
    none_active, size = ours.condition(batch(), active=()), (8, 8)
    assert same(none_active, ours.null(B, size))
    always = Compose(dict(ours.conditioner.conditioners))
    probabilities = {k: c.dropout for k, c in always.conditioners.items()}
    for c in always.conditioners.values():
        c.dropout = 1.0
    try:
        all_dropped = always(batch(), torch.zeros(B, n), None, size, ours.encode)
    finally:
        for k, c in always.conditioners.items():
            c.dropout = probabilities[k]
    assert same(all_dropped, none_active)
    none_dropped = ours.condition(batch(), torch.ones(B, n))
    assert same(none_dropped, ours.condition(batch())), "u = 1 drops nothing"


@pytest.mark.parametrize("name", DEMO)
@torch.no_grad()
def test_each_condition_is_dropped_with_its_own_probability(name):
    ours, n = model(name), 256
    u = torch.rand(n, len(ours.conditioner), generator=torch.Generator().manual_seed(3))
    copies = {k: (v * n if isinstance(v, list) else v.expand(n, *v.shape[1:])) for k, v in batch(n=1).items()}
    for part in conditions_with_input(name):
        alone, j = Compose({part: ours.conditioner.conditioners[part]}), ours.conditioner.dropout_column[part]
        cond = alone(copies, u[:, j : j + 1], None, (8, 8), ours.encode)
        null = alone.null(1, (8, 8))
        is_null = torch.stack(
            [(x == empty).flatten(1).all(1) for x, empty in zip(slots(cond), slots(null), strict=True)]
        )
        p = alone.conditioners[part].dropout
        assert p == 0.1 and torch.equal(is_null.all(0), is_null.any(0)), "all slots are dropped together"
        assert torch.equal(is_null[0], u[:, j] < p)
        assert abs(is_null[0].float().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5


@pytest.mark.parametrize("name", DEMO)
def test_gradients_reach_all_parameters(name):
    ours = model(name)
    ours.zero_grad()
    u = torch.ones(B, len(ours.conditioner))
    u[0] = 0  # one sample's conditions are null, so that learned nulls get gradients, too
    predict(ours, ours.condition(batch(), u)).square().sum().backward()
    learned = dict(ours.conditioner.named_parameters())
    for key, p in learned.items():
        assert p.grad is not None and p.grad.any(), key
    assert all(p.grad is None for p in ours.first_stage.parameters())


@pytest.mark.parametrize("name", DEMO)
@torch.no_grad()
def test_it_composes_with_text(name):
    parts = dict(conditioner(name).conditioners)
    both = Compose({"words": conditioner("demo/text").conditioners["text"], **parts})
    ours, original = model_of(both), batch()
    cond, text = ours.condition(original), ours.condition(original, active={"words"})
    assert cond.context.shape[1] >= 16 and torch.equal(cond.context[:, :16], text.context[:, :16])
    assert torch.equal(cond.vector[:, :128], text.vector[:, :128])
    rest = set(parts)
    changed = {**original, "caption": ["a small blue square on a black background"] * B}
    if "text" not in rest:  # it uses the same captions
        assert same(ours.condition(original, active=rest), ours.condition(changed, active=rest))
    assert (predict(ours, ours.condition(changed)) - predict(ours, cond)).norm() > 1e-3


@pytest.mark.parametrize("name", DEMO)
@torch.no_grad()
def test_it_works_beyond_the_training_size(name):
    ours = model(name)
    cond = ours.condition(batch(size=128), size=(16, 16))
    null = ours.null(B, (16, 16))
    assert [x.shape for x in slots(cond)] == [x.shape for x in slots(null)]
    assert predict(ours, cond, size=16).isfinite().all() and predict(ours, null, size=16).isfinite().all()
