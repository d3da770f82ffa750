"""What keeps a discriminator from winning too clearly."""

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm.losses.adaptive_weight import Logits


class Regularizer(nn.Module, ABC):
    """A term of the discriminator's loss beside the game's."""

    @abstractmethod
    def forward(
        self, discriminator: nn.Module, x: Float[Tensor, "b c H W"], real: Logits, fake: Logits
    ) -> Float[Tensor, ""]:
        """The term, for images x whose logits are `real`."""

    def after_step(self, taken: Bool[Tensor, ""]) -> None:
        """What is to be done behind each optimizer step; nothing may move behind one that was not taken."""


class R1(Regularizer):
    """weight/2 E ‖∇_x D(x)‖² on real images (Mescheder et al. 2018, equation 9), per logit of a patch.

    Costs the discriminator a second pass, and a gradient of its gradient.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(
        self, discriminator: nn.Module, x: Float[Tensor, "b c H W"], real: Logits, fake: Logits
    ) -> Float[Tensor, ""]:
        with torch.autocast(x.device.type, enabled=False):  # squares of small gradients
            images = x.detach().float().requires_grad_()
            logits = discriminator(images)
            (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return 0.5 * self.weight * gradient.square().sum() / logits.numel()


class LeCam(Regularizer):
    """weight (E (D(x) − a_fake)² + E (D(x_hat) − a_real)²), a logits' moving means (Tseng et al. 2021, 4).

    Keeps logits between the two means: for little data. Each batch's own logits count in a already; of a step
    in several micro-batches, each hears where its own would move the means, and they move once.

    Args:
        decay: of the moving means, a step.
    """

    real_mean: Tensor
    fake_mean: Tensor

    def __init__(self, weight: float, decay: float = 0.99) -> None:
        super().__init__()
        self.weight, self.decay = weight, decay
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))
        self.seen: list[tuple[Tensor, int]] = []  # of this step: each micro-batch's two means, and its size

    def forward(
        self, discriminator: nn.Module, x: Float[Tensor, "b c H W"], real: Logits, fake: Logits
    ) -> Float[Tensor, ""]:
        means = torch.stack([real.detach().float().mean(), fake.detach().float().mean()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(means)
            means /= dist.get_world_size()
        self.seen.append((means, len(x)))
        real_mean, fake_mean = self.moved(means)
        apart = (real - fake_mean).square().mean() + (fake - real_mean).square().mean()
        return self.weight * apart

    def moved(self, means: Float[Tensor, "2"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The moving means behind a step whose logits have these."""
        return (
            torch.lerp(means[0], self.real_mean, self.decay),
            torch.lerp(means[1], self.fake_mean, self.decay),
        )

    def after_step(self, taken: Bool[Tensor, ""]) -> None:
        """Move the means."""
        if not self.seen:
            return
        total = sum(n for _, n in self.seen)
        means = torch.stack([part * (n / total) for part, n in self.seen]).sum(0)
        self.seen = []
        moved = zip(self.moved(means), (self.real_mean, self.fake_mean), strict=True)
        self.real_mean, self.fake_mean = (torch.where(taken, now, before) for now, before in moved)
