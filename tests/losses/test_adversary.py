"""The schedule of the adversary, and that neither loss changes the other network's weights."""

import pytest
import torch
from torch import nn

from ldm.losses.adaptive_weight import adaptive_weight
from ldm.losses.adversary import Adversary
from ldm.losses.gan import HingeLoss


@pytest.fixture
def adversary():
    return Adversary(nn.Conv2d(3, 1, 3), weight=0.5, start=10, warmup=4, ramp_steps=4)


def test_the_discriminator_trains_before_the_generator_uses_it(adversary):
    assert [step for step in range(20) if adversary.trains_at(step)][0] == 6
    assert [step for step in range(20) if adversary.weight_at(step) > 0][0] == 11
    assert [adversary.weight_at(step) for step in (9, 10, 11, 12, 14, 99)] == [0, 0, 0.125, 0.25, 0.5, 0.5]


def test_the_generators_term_is_weighted(adversary):
    last_layer = nn.Parameter(torch.randn(3, 3, 1, 1))
    x = torch.randn(2, 3, 8, 8)
    x_hat = nn.functional.conv2d(x, last_layer)
    nll = (x_hat - x).abs().mean()
    term, weight = adversary.generator_term(x_hat, nll, last_layer, step=12)
    torch.testing.assert_close(term, -adversary.discriminator(x_hat).mean())
    torch.testing.assert_close(weight, 0.25 * adaptive_weight(nll, term, last_layer))
    (weight * term).backward()
    assert last_layer.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in adversary.parameters())


def test_the_discriminator_learns_from_real_and_fake(adversary):
    x, x_hat = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    terms = adversary.discriminator_terms(x, x_hat)
    real, fake = adversary.discriminator(x), adversary.discriminator(x_hat)
    torch.testing.assert_close(terms["discriminator"], HingeLoss().discriminator_loss(real, fake))
    torch.testing.assert_close(terms["logits_real"], real.mean())
    torch.testing.assert_close(terms["logits_fake"], fake.mean())
    assert not terms["logits_real"].requires_grad and not terms["logits_fake"].requires_grad
    terms["discriminator"].backward()
    assert all(p.grad is not None for p in adversary.parameters())
