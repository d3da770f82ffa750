"""Class labels as a condition."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ldm.conditioning.base import Conditioner, Size
from ldm.errors import InvalidValue
from ldm.typing import Channels, Conditioning, Proportion


class ClassLabel(Conditioner):
    """c = E[label], one token, a vector, or both (Rombach et al. 2022: 1001 embeddings of 512 for ImageNet).

    The null is an extra class, E[num_classes], learned by dropout.

    Args:
        context: use the embedding as a token for cross-attention.
        vector: use the embedding as the vector.
    """

    def __init__(
        self,
        num_classes: Channels,
        width: Channels,
        dropout: Proportion,
        context: bool = True,
        vector: bool = False,
        batch_key: str = "label",
    ) -> None:
        super().__init__(batch_key, dropout)
        if not context and not vector:
            raise InvalidValue("a class label is a token, a vector, or both: context or vector must be true")
        self.num_classes, self.context, self.vector = num_classes, context, vector
        self.embedding = nn.Embedding(num_classes + 1, width)

    def forward(self, values: Int64[Tensor, " b"]) -> Conditioning:
        """Embed the labels."""
        embedded = self.embedding(values.to(self.device))
        return Conditioning(
            context=embedded[:, None] if self.context else None, vector=embedded if self.vector else None
        )

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return the embedding of the extra class."""
        return self(torch.full((n,), self.num_classes, device=self.device))


class ClassNumber(Conditioner):
    """c = label, for a denoiser with `num_labels` that embeds it itself (Peebles & Xie 2023, section 3.2).

    The null is the label `num_classes`, so the denoiser's `num_labels` is num_classes + 1.
    """

    def __init__(self, num_classes: Channels, dropout: Proportion, batch_key: str = "label") -> None:
        super().__init__(batch_key, dropout)
        self.num_classes = num_classes

    def forward(self, values: Int64[Tensor, " b"]) -> Conditioning:
        """Return the labels as a vector of one channel."""
        return Conditioning(vector=values.to(self.device).float()[:, None])

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return the label `num_classes`."""
        return Conditioning(vector=self.null_labels(n))

    def null_labels(self, n: int) -> Float[Tensor, "n 1"]:
        """Return `num_classes`, n times."""
        return torch.full((n, 1), float(self.num_classes), device=self.device)
