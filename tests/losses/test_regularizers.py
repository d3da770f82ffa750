"""R1 against a gradient computed by hand, LeCam against its equation, both in the adversary."""

import pytest
import torch
from torch import nn

from ldm.losses.adversary import Adversary
from ldm.losses.gan import NonSaturatingLoss
from ldm.losses.regularizers import R1, LeCam, Regularizer


def test_r1_of_a_linear_discriminator_is_its_squared_weight() -> None:
    conv = nn.Conv2d(3, 1, 4, stride=4)
    x = torch.randn(2, 3, 8, 8)
    penalty = R1(weight=6.0)(conv, x, conv(x), conv(x))
    torch.testing.assert_close(penalty, 3.0 * conv.weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(conv.weight.grad, 6.0 * conv.weight)


ACCEPTED = torch.tensor(True)


def test_lecam_pulls_logits_to_the_moving_mean_of_the_other_kind() -> None:
    regularizer = LeCam(weight=0.5, decay=0.75)
    real, fake = torch.full((2, 1, 1, 1), 4.0), torch.full((2, 1, 1, 1), -2.0)
    first = regularizer(nn.Identity(), real, real, fake)
    assert first == 0.5 * ((4 + 0.5) ** 2 + (-2 - 1) ** 2)
    regularizer.after_step(ACCEPTED)
    assert regularizer.real_mean == 1 and regularizer.fake_mean == -0.5
    regularizer(nn.Identity(), real, real, fake)
    regularizer.after_step(ACCEPTED)
    assert regularizer.real_mean == 1.75 and set(regularizer.state_dict()) == {"real_mean", "fake_mean"}


def test_lecam_updates_its_means_once_per_step_for_any_micro_batches() -> None:
    whole, parts = LeCam(weight=1.0, decay=0.75), LeCam(weight=1.0, decay=0.75)
    real, fake = torch.tensor([1.0, 2, 6]).view(3, 1, 1, 1), torch.tensor([-4.0, -5, 0]).view(3, 1, 1, 1)
    for _ in range(2):
        whole(nn.Identity(), real, real, fake)
        for i in (slice(0, 2), slice(2, 3)):
            parts(nn.Identity(), real[i], real[i], fake[i])
        whole.after_step(ACCEPTED)
        parts.after_step(ACCEPTED)
    assert whole.real_mean == 0.25 * 3 * 1.75 and parts.real_mean == whole.real_mean
    assert parts.fake_mean == whole.fake_mean
    parts.after_step(ACCEPTED)
    assert parts.real_mean == whole.real_mean, "a step without the discriminator"


def test_lecam_ignores_a_rejected_step() -> None:
    regularizer = LeCam(weight=1.0, decay=0.75)
    real, fake = torch.ones(2, 1, 1, 1), -torch.ones(2, 1, 1, 1)
    for logits, accepted in ((real, True), (real * torch.nan, False), (real, True)):
        assert regularizer(nn.Identity(), real, logits, fake).isfinite() == accepted
        regularizer.after_step(torch.tensor(accepted))
    assert regularizer.real_mean == 0.25 * 1.75


@pytest.mark.parametrize("regularizer", [R1(10.0), LeCam(0.5)], ids=["r1", "lecam"])
def test_it_is_added_to_the_discriminators_loss(regularizer: Regularizer) -> None:
    discriminator = nn.Conv2d(3, 1, 3)
    plain = Adversary(discriminator, 0.5, 10, gan_loss=NonSaturatingLoss())
    regularized = Adversary(discriminator, 0.5, 10, gan_loss=NonSaturatingLoss(), regularizer=regularizer)
    x, x_hat = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    terms, without = regularized.discriminator_terms(x, x_hat), plain.discriminator_terms(x, x_hat)
    assert terms["discriminator_penalty"] > 0 and "discriminator_penalty" not in without
    torch.testing.assert_close(
        terms["discriminator"], without["discriminator"] + terms["discriminator_penalty"]
    )
    terms["discriminator"].backward()
    assert discriminator.weight.grad.abs().sum() > 0
