"""R1 against a gradient worked out by hand, LeCam against its equation, both through the adversary."""

import pytest
import torch
from torch import nn

from ldm.losses.adversary import Adversary
from ldm.losses.games import NonSaturating
from ldm.losses.penalties import R1, LeCam, Penalty


def test_r1_of_a_linear_discriminator_is_its_weight() -> None:
    conv = nn.Conv2d(3, 1, 4, stride=4)
    x = torch.randn(2, 3, 8, 8)
    penalty = R1(weight=6.0)(conv, x, conv(x), conv(x))
    torch.testing.assert_close(penalty, 3.0 * conv.weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(conv.weight.grad, 6.0 * conv.weight)


def test_le_cam_pulls_logits_to_the_other_kinds_moving_mean() -> None:
    penalty = LeCam(weight=0.5, decay=0.75)
    real, fake = torch.full((2, 1, 1, 1), 4.0), torch.full((2, 1, 1, 1), -2.0)
    first = penalty(nn.Identity(), real, real, fake)
    assert penalty.real_mean == 1 and penalty.fake_mean == -0.5
    assert first == 0.5 * ((4 + 0.5) ** 2 + (-2 - 1) ** 2)
    penalty(nn.Identity(), real, real, fake)
    assert penalty.real_mean == 1.75 and set(penalty.state_dict()) == {"real_mean", "fake_mean"}


@pytest.mark.parametrize("penalty", [R1(10.0), LeCam(0.5)], ids=["r1", "lecam"])
def test_the_discriminator_pays_it(penalty: Penalty) -> None:
    discriminator = nn.Conv2d(3, 1, 3)
    free = Adversary(discriminator, 0.5, 10, game=NonSaturating())
    paying = Adversary(discriminator, 0.5, 10, game=NonSaturating(), penalty=penalty)
    x, x_hat = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    terms, without = paying.discriminator_terms(x, x_hat), free.discriminator_terms(x, x_hat)
    assert terms["discriminator_penalty"] > 0 and "discriminator_penalty" not in without
    torch.testing.assert_close(
        terms["discriminator"], without["discriminator"] + terms["discriminator_penalty"]
    )
    terms["discriminator"].backward()
    assert discriminator.weight.grad.abs().sum() > 0
