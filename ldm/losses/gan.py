"""What discriminator and generator play for, as a choice."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu, softplus

from ldm.losses.adaptive_weight import Logits


class GANLoss(ABC):
    """The two losses of an adversarial training, from a discriminator's logits."""

    @abstractmethod
    def discriminator(self, real: Logits, fake: Logits) -> Float[Tensor, ""]:
        """L_D, which the discriminator makes small."""

    @abstractmethod
    def generator(self, fake: Logits) -> Float[Tensor, ""]:
        """L_G, which the generator makes small."""


class HingeLoss(GANLoss):
    """Logits beyond ±1 are good enough (Lim and Ye 2017): what the published first stages played."""

    def discriminator(self, real: Logits, fake: Logits) -> Float[Tensor, ""]:
        """(E max(0, 1 - D(x)) + E max(0, 1 + D(x_hat))) / 2   (Lim and Ye 2017; Esser et al. 2021)."""
        return 0.5 * (relu(1 - real).mean() + relu(1 + fake).mean())

    def generator(self, fake: Logits) -> Float[Tensor, ""]:
        """-E D(x_hat)."""
        return -fake.mean()


class NonSaturatingLoss(GANLoss):
    """-log of the probability given to the truth, or to the lie (Goodfellow et al. 2014, section 3)."""

    def discriminator(self, real: Logits, fake: Logits) -> Float[Tensor, ""]:
        """(-E log s(D(x)) - E log(1 - s(D(x_hat)))) / 2, s the sigmoid."""
        return 0.5 * (softplus(-real).mean() + softplus(fake).mean())

    def generator(self, fake: Logits) -> Float[Tensor, ""]:
        """-E log s(D(x_hat))."""
        return softplus(-fake).mean()
