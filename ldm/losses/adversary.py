"""The adversarial loss: a discriminator and the schedule of its weight."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm.losses.adaptive_weight import adaptive_weight, ramp
from ldm.losses.gan import GANLoss, HingeLoss
from ldm.losses.regularizers import Regularizer
from ldm.typing import NonNegativeFloat, NonNegativeInt

HINGE = HingeLoss()


class Adversary(nn.Module):
    """A discriminator that trains for `warmup` steps before the generator uses it; its weight then ramps up.

    The published trainer multiplied the discriminator's own loss by 0 until `start`, so that it was untrained
    when it was switched on.

    Args:
        discriminator: images in [-1, 1] -> logits, positive for real.
        weight: factor of the adversarial term, beside its adaptive weight (published: 0.5).
        start: step from which the generator's loss includes the adversarial term.
        warmup: steps before `start` in which the discriminator already trains.
        ramp_steps: steps over which the weight rises from 0 to `weight`.
        gan_loss: the losses of discriminator and generator.
        regularizer: an additional term in the discriminator's loss; None for no term.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        weight: NonNegativeFloat,
        start: NonNegativeInt,
        warmup: NonNegativeInt = 1000,
        ramp_steps: NonNegativeInt = 1000,
        gan_loss: GANLoss = HINGE,
        regularizer: Regularizer | None = None,
    ) -> None:
        super().__init__()
        self.discriminator, self.gan_loss = discriminator, gan_loss
        self.penalty = regularizer  # the name in checkpoints
        self.weight, self.start, self.warmup, self.ramp_steps = weight, start, warmup, ramp_steps

    def trains_at(self, step: int) -> bool:
        """Return whether the discriminator is trained at this step."""
        return step >= self.start - self.warmup

    def weight_at(self, step: int) -> float:
        """Return the ramped weight; 0 before `start`."""
        return self.weight * ramp(step, self.start, self.ramp_steps)

    def generator_term(
        self,
        x_hat: Float[Tensor, "b c h w"],
        nll: Float[Tensor, ""],
        last_layer: Tensor,
        step: int,
        loss_factor: Tensor | float = 1.0,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the generator's loss and its weight, ramp(step) · weight · λ; `loss_factor` is that of λ."""
        # The generator's backward pass must leave no gradients in the discriminator.
        self.discriminator.requires_grad_(False)
        adversarial = self.gan_loss.generator_loss(self.discriminator(x_hat).float())
        self.discriminator.requires_grad_(True)
        weight = adaptive_weight(nll, adversarial, last_layer, loss_factor)
        return adversarial, self.weight_at(step) * weight

    def discriminator_terms(
        self, x: Float[Tensor, "b c h w"], x_hat: Float[Tensor, "b c h w"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the discriminator's regularised loss, and the mean logits on real and fake images."""
        real, fake = self.discriminator(x).float(), self.discriminator(x_hat).float()
        terms = {
            "discriminator": self.gan_loss.discriminator_loss(real, fake),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }
        if self.penalty is not None:
            penalty = self.penalty(self.discriminator, x, real, fake)
            terms |= {"discriminator": terms["discriminator"] + penalty, "discriminator_penalty": penalty}
        return terms

    def after_step(self, accepted: Bool[Tensor, ""]) -> None:
        """Update the regularizer's state after an optimizer step, if the step was accepted."""
        if self.penalty is not None:
            self.penalty.after_step(accepted)
