"""What the two play for: the published equations, and that each loss pulls its own way."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from ldm.losses.gan import GANLoss, HingeLoss, NonSaturatingLoss

REAL, FAKE = torch.tensor([2.0, 0.5]).view(2, 1, 1, 1), torch.tensor([-3.0, 1.0]).view(2, 1, 1, 1)


def test_hinge_by_hand() -> None:
    assert HingeLoss().discriminator(REAL, FAKE).item() == 0.5 * ((0 + 0.5) / 2 + (0 + 2) / 2)
    assert HingeLoss().generator(FAKE).item() == 1.0


def test_with_hinge_the_discriminator_learns_within_its_margin_only() -> None:
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    HingeLoss().discriminator(real, fake).backward()
    assert real.grad.flatten().tolist() == [0.0, -0.25]
    assert fake.grad.flatten().tolist() == [0.0, 0.25]


def test_non_saturating_is_cross_entropy() -> None:
    real, fake = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    expected = cross_entropy(real, torch.ones_like(real)) + cross_entropy(fake, torch.zeros_like(fake))
    torch.testing.assert_close(NonSaturatingLoss().discriminator(real, fake), expected / 2)
    torch.testing.assert_close(
        NonSaturatingLoss().generator(fake), cross_entropy(fake, torch.ones_like(fake))
    )


@pytest.mark.parametrize("game", [HingeLoss(), NonSaturatingLoss()])
def test_each_pulls_its_own_way(game: GANLoss) -> None:
    real, fake = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.zeros(1, 1, 2, 2, requires_grad=True)
    of_real, of_fake = torch.autograd.grad(game.discriminator(real, fake), (real, fake))
    (of_generator,) = torch.autograd.grad(game.generator(fake), fake)
    assert (of_real < 0).all() and (of_fake > 0).all() and (of_generator < 0).all()


def test_hinge_is_content_beyond_its_margin_and_the_generator_never() -> None:
    assert HingeLoss().discriminator(torch.full((1, 1, 1, 1), 1.5), torch.full((1, 1, 1, 1), -1.5)) == 0
    assert HingeLoss().generator(torch.full((1, 1, 1, 1), 3.0)) == -3
