"""A class's number as a condition."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ldm.conditioning.base import Conditioner, Size
from ldm.errors import InvalidValue
from ldm.typing import Conditioning


class ClassLabel(Conditioner):
    """c = E[label], one token, a vector, or both (Rombach et al. 2022: 1001 embeddings of 512 for ImageNet).

    The null is one class more, E[num_classes], learned by dropout.

    Args:
        context: the embedding is a token.
        vector: the embedding fills the vector.
    """

    def __init__(
        self,
        num_classes: int,
        width: int,
        dropout: float,
        context: bool = True,
        vector: bool = False,
        key: str = "label",
    ) -> None:
        super().__init__(key, dropout)
        if not context and not vector:
            raise InvalidValue("a class label is a token, a vector, or both: context or vector must be true")
        self.num_classes, self.context, self.vector = num_classes, context, vector
        self.embedding = nn.Embedding(num_classes + 1, width)

    def forward(self, values: Int64[Tensor, " b"]) -> Conditioning:
        """The condition of each class."""
        embedded = self.embedding(values.to(self.device))
        return Conditioning(
            context=embedded[:, None] if self.context else None, vector=embedded if self.vector else None
        )

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """The class that stands for none."""
        return self(torch.full((n,), self.num_classes, device=self.device))


class ClassNumber(Conditioner):
    """c = label, for a denoiser with `num_labels` that embeds it itself (Peebles & Xie 2023, section 3.2).

    The null is `num_classes`, so the denoiser has one label more.
    """

    def __init__(self, num_classes: int, dropout: float, key: str = "label") -> None:
        super().__init__(key, dropout)
        self.num_classes = num_classes

    def forward(self, values: Int64[Tensor, " b"]) -> Conditioning:
        """The number of each class."""
        return Conditioning(vector=values.to(self.device).float()[:, None])

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """The number that stands for none."""
        return Conditioning(vector=self.none(n))

    def none(self, n: int) -> Float[Tensor, "n 1"]:
        """`num_classes`, n times."""
        return torch.full((n, 1), float(self.num_classes), device=self.device)
