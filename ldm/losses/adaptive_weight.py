"""How the generator's adversarial loss is weighed against the reconstruction, and from when on."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

Logits = Float[Tensor, "b 1 h w"]
"""A discriminator's verdict on each patch; positive says real."""


def adaptive_weight(
    nll: Float[Tensor, ""],
    g: Float[Tensor, ""],
    last_layer: Tensor,
    eps: float = 1e-4,
    maximum: float = 1e4,
) -> Float[Tensor, ""]:
    """lambda = |d nll / d W| / (|d g / d W| + eps), in [0, maximum]   (Esser et al. 2021, equation 7).

    Args:
        nll: the reconstruction and perceptual loss.
        g: the generator's adversarial loss.
        last_layer: W, the decoder's last weight. Its gradients are averaged over all ranks first, so that
            every rank weighs alike and as one big batch would.
    """
    pairs = (torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (nll, g))
    gradients = torch.stack(tuple(pairs))  # 2 and the shape of W
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(gradients)
        gradients /= dist.get_world_size()
    of_nll, of_g = gradients.flatten(1).float().norm(dim=1)
    return (of_nll / (of_g + eps)).clamp(0, maximum)


def ramp(step: int, start: int, ramp_steps: int) -> float:
    """0 up to `start`, then linearly to 1 in `ramp_steps` steps (0: at once)."""
    if step < start:
        return 0.0
    return 1.0 if ramp_steps == 0 else min(1.0, (step - start) / ramp_steps)
