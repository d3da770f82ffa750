"""GAN losses: hinge and non-saturating."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu, softplus

from ldm.losses.adaptive_weight import Logits


class GANLoss(ABC):
    """The discriminator's loss and the generator's, both from the discriminator's logits."""

    @abstractmethod
    def discriminator_loss(self, real: Logits, fake: Logits) -> Float[Tensor, ""]:
        """Return L_D, which the discriminator minimises."""

    @abstractmethod
    def generator_loss(self, fake: Logits) -> Float[Tensor, ""]:
        """Return L_G, which the generator minimises."""


class HingeLoss(GANLoss):
    """Hinge loss with a margin of 1 (Lim and Ye 2017), as in the published autoencoders."""

    def discriminator_loss(self, real: Logits, fake: Logits) -> Float[Tensor, ""]:
        """(E max(0, 1 - D(x)) + E max(0, 1 + D(x_hat))) / 2   (Lim and Ye 2017; Esser et al. 2021)."""
        return 0.5 * (relu(1 - real).mean() + relu(1 + fake).mean())

    def generator_loss(self, fake: Logits) -> Float[Tensor, ""]:
        """-E D(x_hat)."""
        return -fake.mean()


class NonSaturatingLoss(GANLoss):
    """Binary cross-entropy; the generator's is non-saturating (Goodfellow et al. 2014, section 3)."""

    def discriminator_loss(self, real: Logits, fake: Logits) -> Float[Tensor, ""]:
        """(-E log s(D(x)) - E log(1 - s(D(x_hat)))) / 2, where s is the sigmoid."""
        return 0.5 * (softplus(-real).mean() + softplus(fake).mean())

    def generator_loss(self, fake: Logits) -> Float[Tensor, ""]:
        """-E log s(D(x_hat))."""
        return softplus(-fake).mean()
