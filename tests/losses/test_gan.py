"""GAN losses: the published equations and the signs of their gradients."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from ldm.losses.gan import GANLoss, HingeLoss, NonSaturatingLoss

REAL, FAKE = torch.tensor([2.0, 0.5]).view(2, 1, 1, 1), torch.tensor([-3.0, 1.0]).view(2, 1, 1, 1)


def test_hinge_loss_by_hand() -> None:
    assert HingeLoss().discriminator_loss(REAL, FAKE).item() == 0.5 * ((0 + 0.5) / 2 + (0 + 2) / 2)
    assert HingeLoss().generator_loss(FAKE).item() == 1.0


def test_the_hinge_loss_has_gradients_only_within_its_margin() -> None:
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    HingeLoss().discriminator_loss(real, fake).backward()
    assert real.grad.flatten().tolist() == [0.0, -0.25]
    assert fake.grad.flatten().tolist() == [0.0, 0.25]


def test_the_non_saturating_loss_is_cross_entropy() -> None:
    real, fake = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    expected = cross_entropy(real, torch.ones_like(real)) + cross_entropy(fake, torch.zeros_like(fake))
    torch.testing.assert_close(NonSaturatingLoss().discriminator_loss(real, fake), expected / 2)
    torch.testing.assert_close(
        NonSaturatingLoss().generator_loss(fake), cross_entropy(fake, torch.ones_like(fake))
    )


@pytest.mark.parametrize("gan_loss", [HingeLoss(), NonSaturatingLoss()])
def test_discriminator_and_generator_have_opposite_gradients(gan_loss: GANLoss) -> None:
    real, fake = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.zeros(1, 1, 2, 2, requires_grad=True)
    real_grad, fake_grad = torch.autograd.grad(gan_loss.discriminator_loss(real, fake), (real, fake))
    (generator_grad,) = torch.autograd.grad(gan_loss.generator_loss(fake), fake)
    assert (real_grad < 0).all() and (fake_grad > 0).all() and (generator_grad < 0).all()


def test_the_hinge_loss_is_0_beyond_its_margin_for_the_discriminator_only() -> None:
    assert HingeLoss().discriminator_loss(torch.full((1, 1, 1, 1), 1.5), torch.full((1, 1, 1, 1), -1.5)) == 0
    assert HingeLoss().generator_loss(torch.full((1, 1, 1, 1), 3.0)) == -3
