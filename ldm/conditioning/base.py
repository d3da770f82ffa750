"""What every conditioner is, and the merging of several."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm.typing import Conditioning


class Conditioner(nn.Module, ABC):
    """tau_theta(y): an entry of the batch as tokens, a vector or channels (Rombach et al. 2022, 3.3).

    Args:
        key: the batch's entry it reads.
        dropout: the probability that a training sample has its null instead, for classifier-free guidance
            (Ho and Salimans 2022, algorithm 1).
    """

    def __init__(self, key: str, dropout: float) -> None:
        super().__init__()
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a probability, got {dropout}")
        self.key, self.dropout = key, dropout

    @abstractmethod
    def forward(self, values: Any) -> Conditioning:
        """The condition of each value."""

    @abstractmethod
    def null(self, n: int) -> Conditioning:
        """n copies of what stands for "no condition"."""

    def load_pretrained(self) -> None:
        """Loads foreign weights where it has some. UserError where they are missing."""
        return None

    def identity(self) -> dict[str, str]:
        """Name and hash of its frozen weights, which checkpoints leave out; empty where all is trained."""
        return {}


class Compose(nn.Module):
    """Several conditioners merged slot by slot: tokens joined along l, vectors along e, channels along k."""

    def __init__(self, conditioners: Mapping[str, Conditioner]) -> None:
        super().__init__()
        self.conditioners = nn.ModuleDict(dict(conditioners))

    def __len__(self) -> int:
        return len(self.conditioners)

    def forward(self, batch: Mapping[str, Any], u: Float[Tensor, "b n"] | None = None) -> Conditioning:
        """The conditions of a batch; with u ~ U[0, 1), the j-th of sample i is null if u[i, j] < dropout."""
        parts = []
        for j, conditioner in enumerate(self._each()):
            cond = conditioner(batch[conditioner.key])
            if u is not None and conditioner.dropout > 0:
                cond = _replaced(cond, conditioner.null(1), u[:, j] < conditioner.dropout)
            parts.append(cond)
        return _merged(parts)

    def null(self, n: int) -> Conditioning:
        """n copies of every conditioner's null."""
        return _merged([conditioner.null(n) for conditioner in self._each()])

    def load_pretrained(self) -> None:
        """Loads every conditioner's foreign weights."""
        for conditioner in self._each():
            conditioner.load_pretrained()

    def identity(self) -> dict[str, dict[str, str]]:
        """Name and hash of the frozen weights, by conditioner."""
        named = {name: conditioner.identity() for name, conditioner in self.conditioners.items()}  # type: ignore[operator]
        return {name: identity for name, identity in named.items() if identity}

    def _each(self) -> list[Conditioner]:
        return list(self.conditioners.values())  # type: ignore[arg-type]


def _replaced(cond: Conditioning, null: Conditioning, drop: Bool[Tensor, " b"]) -> Conditioning:
    def mixed(kept: Tensor | None, empty: Tensor | None) -> Tensor | None:
        if kept is None or empty is None:
            assert kept is empty, "a conditioner's null fills other slots than its conditions"
            return None
        mask = drop.to(kept.device).view(-1, *[1] * (kept.ndim - 1))
        return torch.where(mask, empty.to(kept.dtype), kept)

    return Conditioning(*(mixed(getattr(cond, f.name), getattr(null, f.name)) for f in fields(Conditioning)))


def _merged(parts: list[Conditioning]) -> Conditioning:
    def joined(slot: str) -> Tensor | None:
        filled = [value for part in parts if (value := getattr(part, slot)) is not None]
        return torch.cat(filled, dim=1) if filled else None

    return Conditioning(*(joined(f.name) for f in fields(Conditioning)))
