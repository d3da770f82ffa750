"""The discriminator and when it is heard."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm.losses.adaptive_weight import adaptive_weight, ramp
from ldm.losses.gan import GANLoss, HingeLoss
from ldm.losses.regularizers import Regularizer

HINGE = HingeLoss()


class Adversary(nn.Module):
    """A discriminator that learns `warmup` steps before the generator hears it, at `start`, then ramps up.

    The published trainer multiplied the discriminator's own loss by 0 until `start`, so that it switched on
    untrained.

    Args:
        discriminator: images in [-1, 1] -> logits, high for real.
        weight: of the adversarial term beside its adaptive weight (published: 0.5).
        start: step at which the generator begins to hear the discriminator.
        warmup: steps before `start` in which only the discriminator learns.
        ramp_steps: steps over which the weight rises from 0 to `weight`.
        game: the two losses.
        penalty: of the discriminator, beside its loss.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        weight: float,
        start: int,
        warmup: int = 1000,
        ramp_steps: int = 1000,
        game: GANLoss = HINGE,
        penalty: Regularizer | None = None,
    ) -> None:
        super().__init__()
        self.discriminator, self.game, self.penalty = discriminator, game, penalty
        self.weight, self.start, self.warmup, self.ramp_steps = weight, start, warmup, ramp_steps

    def trains_at(self, step: int) -> bool:
        """Whether the discriminator takes a step."""
        return step >= self.start - self.warmup

    def weight_at(self, step: int) -> float:
        """The ramped weight; 0 before `start`."""
        return self.weight * ramp(step, self.start, self.ramp_steps)

    def generator_term(
        self, x_hat: Float[Tensor, "b c h w"], nll: Float[Tensor, ""], last_layer: Tensor, step: int
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """(the generator's loss, its weight: ramp(step) · weight · λ)."""
        # The generator's backward must leave no gradient in the discriminator.
        self.discriminator.requires_grad_(False)
        adversarial = self.game.generator(self.discriminator(x_hat))
        self.discriminator.requires_grad_(True)
        return adversarial, self.weight_at(step) * adaptive_weight(nll, adversarial, last_layer)

    def discriminator_terms(
        self, x: Float[Tensor, "b c h w"], x_hat: Float[Tensor, "b c h w"]
    ) -> dict[str, Float[Tensor, ""]]:
        """The discriminator's loss with its penalty, and the mean logits on real and on fake images."""
        real, fake = self.discriminator(x), self.discriminator(x_hat)
        terms = {
            "discriminator": self.game.discriminator(real, fake),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }
        if self.penalty is not None:
            penalty = self.penalty(self.discriminator, x, real, fake)
            terms |= {"discriminator": terms["discriminator"] + penalty, "discriminator_penalty": penalty}
        return terms

    def after_step(self, taken: Bool[Tensor, ""]) -> None:
        """What the penalty keeps moves on, behind an optimizer step that was taken."""
        if self.penalty is not None:
            self.penalty.after_step(taken)
