"""The weight of the generator's adversarial loss: adaptive weight and ramp."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

Logits = Float[Tensor, "b 1 h w"]
"""A discriminator's logits per patch; positive means real."""


def adaptive_weight(
    nll: Float[Tensor, ""],
    g: Float[Tensor, ""],
    last_layer: Tensor,
    loss_factor: Tensor | float = 1.0,
    eps: float = 1e-4,
    maximum: float = 1e4,
) -> Float[Tensor, ""]:
    """lambda = |d nll / d W| / (|d g / d W| + eps), in [0, maximum]   (Esser et al. 2021, equation 7).

    Args:
        nll: the reconstruction and perceptual loss.
        g: the generator's adversarial loss.
        last_layer: W, the decoder's last weight. Its gradients are averaged over all ranks first, so that
            every rank has the same weight, that of the global batch.
        loss_factor: scales the losses while their gradients are computed in fp16. If they overflow, so that
            a norm is infinite or NaN, lambda is NaN, and the step with it is skipped.
    """
    gradient_pair = (
        torch.autograd.grad(loss * loss_factor, last_layer, retain_graph=True)[0] for loss in (nll, g)
    )
    gradients = torch.stack(tuple(gradient_pair)) / loss_factor  # (2, *W.shape)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(gradients)
        gradients /= dist.get_world_size()
    nll_norm, g_norm = gradients.flatten(1).float().norm(dim=1)
    weight = (nll_norm / (g_norm + eps)).clamp(0, maximum)
    return torch.where(gradients.isfinite().all(), weight, torch.nan)


def ramp(step: int, start: int, ramp_steps: int) -> float:
    """Return 0 up to `start`, then rise linearly to 1 over `ramp_steps` steps (0: immediately)."""
    if step < start:
        return 0.0
    return 1.0 if ramp_steps == 0 else min(1.0, (step - start) / ramp_steps)
