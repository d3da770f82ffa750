from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from ldm.networks import vector_quantizer
from ldm.networks.vector_quantizer import VQBottleneck, count_codes, perplexity


def small(num_codes: int = 12, **options: float | bool | int) -> VQBottleneck:
    torch.manual_seed(0)
    bottleneck = VQBottleneck(3, num_codes, **options)
    torch.nn.init.normal_(bottleneck.codebook.weight)
    return bottleneck


def test_a_code_is_the_nearest_one_for_any_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    bottleneck, z = small(), torch.randn(2, 3, 5, 4)
    distances = (z[:, None] - bottleneck.codebook.weight[None, :, :, None, None]).square().sum(2)
    assert torch.equal(bottleneck.codes(z), distances.argmin(1))
    monkeypatch.setattr(vector_quantizer, "DISTANCES_AT_ONCE", 36)
    assert torch.equal(bottleneck.codes(z), distances.argmin(1))


def test_diffusion_uses_the_latent_and_the_decoder_its_code() -> None:
    bottleneck, h = small(), torch.randn(2, 3, 4, 4)
    posterior = bottleneck.posterior(h)
    z = posterior.sample(torch.randn_like(h))
    torch.testing.assert_close(z, bottleneck.to_latent(h))
    quantised = bottleneck.lookup(bottleneck.codes(z))
    torch.testing.assert_close(bottleneck.expand(z), bottleneck.from_latent(quantised))


def test_the_gradient_is_straight_through() -> None:
    bottleneck, z = small(), torch.randn(1, 3, 2, 2, requires_grad=True)
    bottleneck.from_latent = torch.nn.Identity()
    direction = torch.randn(1, 3, 2, 2)
    bottleneck.expand(z).backward(direction)
    torch.testing.assert_close(z.grad, direction)


@pytest.mark.parametrize("legacy", [False, True])
def test_beta_weights_the_commitment_and_in_legacy_models_the_other_term(legacy: bool) -> None:
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
    """Return a bottleneck whose code k is the number k, so that a map of integers selects its codes."""
    bottleneck = VQBottleneck(1, num_codes)
    bottleneck.to_latent = torch.nn.Identity()
    bottleneck.codebook.weight.data = torch.arange(num_codes).float()[:, None]
    return bottleneck


def quantize(bottleneck: VQBottleneck, *codes: int) -> None:
    bottleneck.terms(bottleneck.posterior(torch.tensor(codes).float().view(1, 1, 1, -1)), 1)


def measure_usage(bottleneck: VQBottleneck) -> tuple[float, float]:
    metrics = bottleneck.metrics()
    return round(16 * metrics["codes_used"].item(), 4), round(metrics["perplexity"].item(), 4)


def test_perplexity() -> None:
    counts = count_codes(torch.tensor([[[0, 0], [3, 3]]]), 5)
    assert counts.tolist() == [2, 0, 0, 2, 0]
    assert perplexity(counts).item() == pytest.approx(2) and perplexity(
        torch.ones(7)
    ).item() == pytest.approx(7)


def test_usage_covers_all_passes_since_the_last_metrics() -> None:
    """Means over passes would be 2 codes instead of 4, and never more than one pass has positions."""
    bottleneck = grid()
    quantize(bottleneck, 0, 1)
    quantize(bottleneck, 2, 3)
    assert measure_usage(bottleneck) == (4, 4)
    quantize(bottleneck, 5, 5)
    assert measure_usage(bottleneck) == (1, 1), "counts restart from 0"


def test_usage_in_validation_is_counted_separately() -> None:
    bottleneck = grid()
    quantize(bottleneck, 0, 1, 2)
    bottleneck.eval()
    quantize(bottleneck, 7)
    quantize(bottleneck, 8)
    assert measure_usage(bottleneck) == (2, 2)
    bottleneck.train()
    assert measure_usage(bottleneck) == (3, 3)


def test_counting_resumes_from_saved_counts_that_are_not_in_the_state_dict() -> None:
    bottleneck, resumed = grid(), grid()
    before = set(bottleneck.state_dict())
    quantize(bottleneck, 0, 1)
    resumed.restore(bottleneck.codebook_counts())
    quantize(bottleneck, 2, 3)
    quantize(resumed, 2, 3)
    assert measure_usage(bottleneck) == measure_usage(resumed) == (4, 4)
    assert set(bottleneck.state_dict()) == before


def run_rank(rank: int, store: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    bottleneck = grid()
    for first in (0, 4):
        quantize(bottleneck, first + 2 * rank, first + 2 * rank + 1)
    assert bottleneck.codebook_counts().tolist() == [1] * 8 + [0] * 8
    assert measure_usage(bottleneck) == (8, 8), "codes of both ranks, in two passes"
    torch.distributed.destroy_process_group()


@pytest.mark.multiprocess
def test_usage_covers_all_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(run_rank, (str(tmp_path / "store"),), 2, start_method="fork")


ACCEPTED = torch.tensor(True)


def step(bottleneck: VQBottleneck) -> None:
    for _ in range(2):  # micro-batches of one step
        bottleneck.terms(bottleneck.posterior(torch.randn(2, 3, 4, 4)), 1)
    bottleneck.after_step(ACCEPTED)


def test_an_unused_code_moves_to_a_latent_after_revive_after_steps() -> None:
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


def test_no_code_moves_after_a_rejected_step() -> None:
    """Its latents may be NaN, as in a step skipped by the guard; the next step's latents are used."""
    bottleneck = small(num_codes=4, revive_after=2)
    bottleneck.codebook.weight.data += torch.tensor([0, 1e3, 1e3, 1e3])[:, None]
    step(bottleneck)
    before = bottleneck.codebook.weight.clone()
    bottleneck.terms(bottleneck.posterior(torch.full((2, 3, 4, 4), torch.nan)), 1)
    bottleneck.after_step(~ACCEPTED)
    assert torch.equal(bottleneck.codebook.weight, before) and bottleneck.idle.tolist() == [0, 1, 1, 1]
    step(bottleneck)
    assert bottleneck.codebook.weight.abs().max() < 50 and not bottleneck.idle.any()


def test_codes_do_not_move_in_validation_when_frozen_or_without_revival() -> None:
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
