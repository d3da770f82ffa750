"""The learned log-variance of the reconstruction."""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm.typing import Range


class LearnedLogVar(nn.Module):
    """-log p(x|z) = d / exp(s) + s, with s learned (Rybkin et al. 2021, section 4; CompVis: `learn_logvar`).

    At its optimum exp(s) is the mean distance, so that the other terms keep their relative weight as d falls.

    Args:
        initial: initial value of s.
    """

    def __init__(self, initial: Annotated[float, Range(-20, 20)] = 0.0) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(initial))

    def forward(self, d: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return the negative log-likelihood of a distance."""
        return d * torch.exp(-self.s) + self.s
