import pytest
import torch

from ldm.networks import codebook
from ldm.networks.codebook import VQBottleneck, count, perplexity


def small(num_codes: int = 12, **options: float | bool | int) -> VQBottleneck:
    torch.manual_seed(0)
    bottleneck = VQBottleneck(3, num_codes, **options)
    torch.nn.init.normal_(bottleneck.codebook.weight)
    return bottleneck


def test_a_code_is_the_nearest_one_in_any_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    bottleneck, z = small(), torch.randn(2, 3, 5, 4)
    distances = (z[:, None] - bottleneck.codebook.weight[None, :, :, None, None]).square().sum(2)
    assert torch.equal(bottleneck.codes(z), distances.argmin(1))
    monkeypatch.setattr(codebook, "DISTANCES_AT_ONCE", 36)
    assert torch.equal(bottleneck.codes(z), distances.argmin(1))


def test_diffusion_sees_the_latent_and_the_decoder_a_code() -> None:
    bottleneck, h = small(), torch.randn(2, 3, 4, 4)
    posterior = bottleneck.posterior(h)
    z = posterior.sample(torch.randn_like(h))
    torch.testing.assert_close(z, bottleneck.to_latent(h))
    quantised = bottleneck.lookup(bottleneck.codes(z))
    torch.testing.assert_close(bottleneck.expand(z), bottleneck.from_latent(quantised))


def test_the_gradient_passes_straight() -> None:
    bottleneck, z = small(), torch.randn(1, 3, 2, 2, requires_grad=True)
    bottleneck.from_latent = torch.nn.Identity()
    direction = torch.randn(1, 3, 2, 2)
    bottleneck.expand(z).backward(direction)
    torch.testing.assert_close(z.grad, direction)


@pytest.mark.parametrize("legacy", [False, True])
def test_beta_weighs_the_commitment_and_in_legacy_models_the_other_term(legacy: bool) -> None:
    bottleneck = small(beta=0.25, weight=2.0, legacy=legacy)
    h = torch.randn(1, 3, 2, 2)
    bottleneck.to_latent = torch.nn.Identity()
    h.requires_grad_()
    posterior = bottleneck.posterior(h)
    bottleneck.terms(posterior, 99)["penalty"].backward()
    distance = posterior.mean - bottleneck.lookup(bottleneck.codes(h))
    factor = 2.0 * (1.0 if legacy else 0.25)
    torch.testing.assert_close(h.grad, factor * 2 * distance.detach() / 12)
    total = bottleneck.codebook.weight.grad.sum(0)
    factor = 2.0 * (0.25 if legacy else 1.0)
    torch.testing.assert_close(total, -factor * 2 * distance.detach().sum((0, 2, 3)) / 12)


def test_usage_and_perplexity() -> None:
    counts = count(torch.tensor([[[0, 0], [3, 3]]]), 5)
    assert counts.tolist() == [2, 0, 0, 2, 0]
    assert perplexity(counts).item() == pytest.approx(2) and perplexity(
        torch.ones(7)
    ).item() == pytest.approx(7)
    bottleneck = small(num_codes=4)
    bottleneck.codebook.weight.data += torch.tensor([0, 1e3, 1e3, 1e3])[:, None]
    terms = bottleneck.terms(bottleneck.posterior(torch.randn(2, 3, 4, 4)), 1)
    assert terms["codes_used"] == 0.25 and terms["perplexity"].item() == pytest.approx(1)


def step(bottleneck: VQBottleneck) -> None:
    for _ in range(2):  # micro-batches of one step
        bottleneck.terms(bottleneck.posterior(torch.randn(2, 3, 4, 4)), 1)
    bottleneck.after_step()


def test_a_dead_code_moves_to_a_latent_when_its_time_has_come() -> None:
    bottleneck = small(num_codes=4, revive_after=3)
    bottleneck.codebook.weight.data += torch.tensor([0, 1e3, 1e3, 1e3])[:, None]
    alive = bottleneck.codebook.weight[0].clone()
    for expected in (1, 2):
        step(bottleneck)
        assert bottleneck.idle.tolist() == [0, *[expected] * 3]
        assert bottleneck.codebook.weight[1:].min() > 500
    step(bottleneck)
    assert not bottleneck.idle.any() and bottleneck.codebook.weight.abs().max() < 50
    assert torch.equal(bottleneck.codebook.weight[0], alive)


def test_codes_do_not_move_in_validation_nor_frozen_nor_where_none_revive() -> None:
    validating, frozen, plain = small(revive_after=1).eval(), small(revive_after=1), small()
    frozen.requires_grad_(False)
    for bottleneck in (validating, frozen, plain):
        before = bottleneck.codebook.weight.clone()
        step(bottleneck)
        assert torch.equal(bottleneck.codebook.weight, before)
    assert "idle" not in plain.state_dict() and "idle" in validating.state_dict()


def test_codes_are_chosen_in_fp32_under_autocast() -> None:
    bottleneck = small(num_codes=512)
    z = torch.randn(2, 3, 16, 16)
    expected = bottleneck.codes(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bottleneck.codes(z), expected)
        assert bottleneck.posterior(z).mean.dtype == torch.float32
