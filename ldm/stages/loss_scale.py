"""The loss scale of fp16 training."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

INITIAL, LARGEST = 2.0**16, 2.0**32


class LossScale(nn.Module):
    """The factor of the loss in fp16, which keeps small gradients from vanishing (Micikevicius et al. 2018).

    It halves when gradients overflow, and that step must be skipped; it doubles after `interval` steps with
    finite gradients. It is a power of two, so that scaling does not round, and at least 1: gradients that
    overflow there are bad in any precision, and the step guard counts them (`torch.amp.GradScaler` has no
    such limit). DDP has averaged the gradients, so all ranks agree without communication. Everything stays on
    the device.

    Attributes:
        factor: multiplies the loss.
        overflows: number of skipped steps.
    """

    factor: Tensor
    finite_steps: Tensor
    overflows: Tensor

    def __init__(self, interval: int = 2000) -> None:
        super().__init__()
        self.interval = interval
        for name, value in (("factor", INITIAL), ("finite_steps", 0.0), ("overflows", 0.0)):
            # Not persistent: a run may continue in another precision, with the same weights.
            self.register_buffer(name, torch.tensor(value), persistent=False)

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by the factor, in place."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.factor)

    @torch.no_grad()
    def update(self, norms: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """Return 1 if gradients of these norms have overflowed because of the factor, else 0; adapt it."""
        is_finite = norms.isfinite().all()
        overflow = ~is_finite & (self.factor > 1)
        self.finite_steps.add_(1).mul_(is_finite)
        grows = self.finite_steps >= self.interval
        self.finite_steps.mul_(~grows)
        self.factor.mul_(torch.where(overflow, 0.5, 1.0) * torch.where(grows, 2.0, 1.0)).clamp_(1, LARGEST)
        self.overflows += overflow
        return overflow.to(torch.float32)

    def metrics(self) -> dict[str, Tensor]:
        """Return the factor, and the number of steps skipped so far."""
        return {"loss_scale": self.factor, "overflowed_steps": self.overflows}

    def checkpoint(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint."""
        return {name: value.cpu() for name, value in self.named_buffers()}

    @torch.no_grad()
    def restore(self, checkpoint: dict[str, Tensor]) -> None:
        """Continue from the state of a checkpoint."""
        for name, value in self.named_buffers():
            value.copy_(checkpoint[name])
