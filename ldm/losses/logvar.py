"""The reconstruction's scale, learned."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LearnedLogVar(nn.Module):
    """-log p(x|z) = d / exp(s) + s, with s learned (Rybkin et al. 2021, section 4; `learn_logvar` of others).

    At its optimum exp(s) is the mean distance, so that the terms beside it keep their weight while d falls.

    Args:
        initial: s at the start.
    """

    def __init__(self, initial: float = 0.0) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(initial))

    def forward(self, d: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The negative log-likelihood of a distance."""
        return d * torch.exp(-self.s) + self.s
