import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from ldm.networks.bottleneck import DiagonalGaussian, KLBottleneck, NoBottleneck


def test_sample_has_the_mean_and_std() -> None:
    q = DiagonalGaussian(torch.full((1, 2, 1, 1), 3.0), torch.full((1, 2, 1, 1), 0.5))
    samples = torch.stack([q.sample(torch.randn(1, 2, 1, 1)) for _ in range(2000)])
    assert abs(samples.mean() - 3) < 0.05 and abs(samples.std() - 0.5) < 0.05


def test_kl_equals_torchs_in_nats_summed_over_a_latent() -> None:
    mean, std = torch.randn(3, 2, 4, 4), torch.rand(3, 2, 4, 4) + 0.1
    unit = Normal(torch.zeros_like(mean), torch.ones_like(std))
    expected = kl_divergence(Independent(Normal(mean, std), 3), Independent(unit, 3))
    torch.testing.assert_close(DiagonalGaussian(mean, std).kl(), expected)


def test_the_log_variance_is_clamped() -> None:
    bottleneck = KLBottleneck(2)
    torch.nn.init.zeros_(bottleneck.to_moments.weight)
    bottleneck.to_moments.bias.data = torch.tensor([1.0, 2.0, -100.0, 100.0])
    q = bottleneck.posterior(torch.randn(1, 4, 1, 1))
    assert q.mean.flatten().tolist() == [1, 2]
    torch.testing.assert_close(q.std.flatten().log(), torch.tensor([-15.0, 10.0]))


def test_the_posterior_is_fp32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        q = KLBottleneck(2).posterior(torch.randn(1, 4, 2, 2))
    assert q.mean.dtype == q.std.dtype == torch.float32


def test_the_kl_is_per_image_dimension() -> None:
    posterior = DiagonalGaussian(torch.full((2, 4, 4, 4), 2.0), torch.ones(2, 4, 4, 4))
    terms = KLBottleneck(4, weight=0.01).terms(posterior, 3 * 16 * 16)
    assert terms["kl"].item() == pytest.approx(0.5 * 4 * 64 / (3 * 16 * 16))
    assert terms["penalty"].item() == pytest.approx(0.01 * terms["kl"].item())


def test_without_a_bottleneck_latents_are_the_encoders_output() -> None:
    bottleneck, h = NoBottleneck(4), torch.randn(2, 4, 3, 3)
    posterior = bottleneck.posterior(h)
    assert torch.equal(bottleneck.expand(posterior.sample(torch.randn_like(h))), h)
    assert bottleneck.terms(posterior, 27) == {"penalty": 0}
