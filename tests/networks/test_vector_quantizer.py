from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from ldm.networks import vector_quantizer
from ldm.networks.vector_quantizer import VQBottleneck, count, perplexity


def small(num_codes: int = 12, **options: float | bool | int) -> VQBottleneck:
    torch.manual_seed(0)
    bottleneck = VQBottleneck(3, num_codes, **options)
    torch.nn.init.normal_(bottleneck.codebook.weight)
    return bottleneck


def test_a_code_is_the_nearest_one_in_any_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    bottleneck, z = small(), torch.randn(2, 3, 5, 4)
    distances = (z[:, None] - bottleneck.codebook.weight[None, :, :, None, None]).square().sum(2)
    assert torch.equal(bottleneck.codes(z), distances.argmin(1))
    monkeypatch.setattr(vector_quantizer, "DISTANCES_AT_ONCE", 36)
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


def grid(num_codes: int = 16) -> VQBottleneck:
    """Code k is k, so that a map of whole numbers says which codes it takes."""
    bottleneck = VQBottleneck(1, num_codes)
    bottleneck.to_latent = torch.nn.Identity()
    bottleneck.codebook.weight.data = torch.arange(num_codes).float()[:, None]
    return bottleneck


def take(bottleneck: VQBottleneck, *codes: int) -> None:
    bottleneck.terms(bottleneck.posterior(torch.tensor(codes).float().view(1, 1, 1, -1)), 1)


def told(bottleneck: VQBottleneck) -> tuple[float, float]:
    metrics = bottleneck.metrics()
    return round(16 * metrics["codes_used"].item(), 4), round(metrics["perplexity"].item(), 4)


def test_perplexity() -> None:
    counts = count(torch.tensor([[[0, 0], [3, 3]]]), 5)
    assert counts.tolist() == [2, 0, 0, 2, 0]
    assert perplexity(counts).item() == pytest.approx(2) and perplexity(
        torch.ones(7)
    ).item() == pytest.approx(7)


def test_usage_is_of_all_passes_since_it_was_told_last() -> None:
    """Means over passes would say 2 codes of each other's 4, and never more than one pass has places."""
    bottleneck = grid()
    take(bottleneck, 0, 1)
    take(bottleneck, 2, 3)
    assert told(bottleneck) == (4, 4)
    take(bottleneck, 5, 5)
    assert told(bottleneck) == (1, 1), "counted from nothing again"


def test_usage_of_validation_is_counted_apart() -> None:
    bottleneck = grid()
    take(bottleneck, 0, 1, 2)
    bottleneck.eval()
    take(bottleneck, 7)
    take(bottleneck, 8)
    assert told(bottleneck) == (2, 2)
    bottleneck.train()
    assert told(bottleneck) == (3, 3)


def test_counting_goes_on_from_a_tally_and_is_no_part_of_the_weights() -> None:
    bottleneck, other = grid(), grid()
    before = set(bottleneck.state_dict())
    take(bottleneck, 0, 1)
    other.restore(bottleneck.codebook_counts())
    take(bottleneck, 2, 3)
    take(other, 2, 3)
    assert told(bottleneck) == told(other) == (4, 4)
    assert set(bottleneck.state_dict()) == before


def one_of_two(rank: int, store: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    bottleneck = grid()
    for first in (0, 4):
        take(bottleneck, first + 2 * rank, first + 2 * rank + 1)
    assert bottleneck.codebook_counts().tolist() == [1] * 8 + [0] * 8
    assert told(bottleneck) == (8, 8), "what both took, in two passes"
    torch.distributed.destroy_process_group()


@pytest.mark.multiprocess
def test_usage_is_of_all_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(one_of_two, (str(tmp_path / "store"),), 2, start_method="fork")


TAKEN = torch.tensor(True)


def step(bottleneck: VQBottleneck) -> None:
    for _ in range(2):  # micro-batches of one step
        bottleneck.terms(bottleneck.posterior(torch.randn(2, 3, 4, 4)), 1)
    bottleneck.after_step(TAKEN)


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


def test_no_code_moves_behind_a_step_that_was_not_taken() -> None:
    """Its latents may be NaN, as those of a step that the guard skips; the next step's are taken."""
    bottleneck = small(num_codes=4, revive_after=2)
    bottleneck.codebook.weight.data += torch.tensor([0, 1e3, 1e3, 1e3])[:, None]
    step(bottleneck)
    before = bottleneck.codebook.weight.clone()
    bottleneck.terms(bottleneck.posterior(torch.full((2, 3, 4, 4), torch.nan)), 1)
    bottleneck.after_step(~TAKEN)
    assert torch.equal(bottleneck.codebook.weight, before) and bottleneck.idle.tolist() == [0, 1, 1, 1]
    step(bottleneck)
    assert bottleneck.codebook.weight.abs().max() < 50 and not bottleneck.idle.any()


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
