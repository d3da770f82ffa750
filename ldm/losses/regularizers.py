"""Regularizers that keep a discriminator from overpowering the generator."""

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm.losses.adaptive_weight import Logits
from ldm.typing import NonNegativeFloat, Proportion


class Regularizer(nn.Module, ABC):
    """An additional term in the discriminator's loss."""

    @abstractmethod
    def forward(
        self, discriminator: nn.Module, x: Float[Tensor, "b c H W"], real: Logits, fake: Logits
    ) -> Float[Tensor, ""]:
        """Return the term, for real images x with logits `real`."""

    def after_step(self, accepted: Bool[Tensor, ""]) -> None:
        """Update state after each optimizer step; a step that was not accepted must change nothing."""


class R1(Regularizer):
    """weight/2 E ‖∇_x D(x)‖² on real images (Mescheder et al. 2018, equation 9), per patch logit.

    Needs a second pass through the discriminator, and second-order gradients.
    """

    def __init__(self, weight: NonNegativeFloat) -> None:
        super().__init__()
        self.weight = weight

    def forward(
        self, discriminator: nn.Module, x: Float[Tensor, "b c H W"], real: Logits, fake: Logits
    ) -> Float[Tensor, ""]:
        with torch.autocast(x.device.type, enabled=False):  # squares of small gradients need fp32
            images = x.detach().float().requires_grad_()
            logits = discriminator(images)
            (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return 0.5 * self.weight * gradient.square().sum() / logits.numel()


class LeCam(Regularizer):
    """weight (E (D(x) − a_fake)² + E (D(x_hat) − a_real)²), a: moving means of logits (Tseng et al. 2021, 4).

    Keeps logits between the two means: for small datasets. a includes the current batch. With gradient
    accumulation every micro-batch uses the means updated by itself alone, and a step updates them once.

    Args:
        decay: decay of the moving means per step.
    """

    real_mean: Tensor
    fake_mean: Tensor

    def __init__(self, weight: NonNegativeFloat, decay: Proportion = 0.99) -> None:
        super().__init__()
        self.weight, self.decay = weight, decay
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))
        # For `after_step`: the two means and the size of each micro-batch of this step.
        self.batch_means: list[tuple[Tensor, int]] = []

    def forward(
        self, discriminator: nn.Module, x: Float[Tensor, "b c H W"], real: Logits, fake: Logits
    ) -> Float[Tensor, ""]:
        means = torch.stack([real.detach().float().mean(), fake.detach().float().mean()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(means)
            means /= dist.get_world_size()
        self.batch_means.append((means, len(x)))
        real_mean, fake_mean = self.next_means(means)
        distance = (real - fake_mean).square().mean() + (fake - real_mean).square().mean()
        return self.weight * distance

    def next_means(self, means: Float[Tensor, "2"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the moving means after a step whose logits have these means."""
        return (
            torch.lerp(means[0], self.real_mean, self.decay),
            torch.lerp(means[1], self.fake_mean, self.decay),
        )

    def after_step(self, accepted: Bool[Tensor, ""]) -> None:
        """Update the moving means by all micro-batches of the step."""
        if not self.batch_means:
            return
        total = sum(n for _, n in self.batch_means)
        means = torch.stack([part * (n / total) for part, n in self.batch_means]).sum(0)
        self.batch_means = []
        pairs = zip(self.next_means(means), (self.real_mean, self.fake_mean), strict=True)
        self.real_mean, self.fake_mean = (torch.where(accepted, new, old) for new, old in pairs)
