"""What every conditioner is, and several as one: read, encoded, dropped, merged."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm.errors import InvalidValue, UserError
from ldm.typing import Conditioning

Size: TypeAlias = tuple[int, int]
"""(height, width) of the latent."""


class Conditioner(nn.Module, ABC):
    """tau_theta(y): an entry of the batch as tokens, a vector or channels (Rombach et al. 2022, 3.3).

    Args:
        key: the batch's entry it reads.
        dropout: the probability that a training sample has its null instead, for classifier-free guidance
            (Ho and Salimans 2022, algorithm 1). At 0 the network never learns the null, so guidance keeps
            the condition.
    """

    through_first_stage: ClassVar[bool] = False
    """Whether `forward` gets the frozen first stage's latent of the image that `read` gives."""
    place: Tensor

    def __init__(self, key: str, dropout: float) -> None:
        super().__init__()
        if not 0 <= dropout <= 1:
            raise InvalidValue(f"dropout is a probability, got {dropout}")
        self.key, self.dropout = key, dropout
        self.register_buffer("place", torch.zeros(()), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the conditioner is."""
        return self.place.device

    @property
    def keys(self) -> tuple[str, ...]:
        """The batch's entries that it cannot do without."""
        return (self.key,)

    def read(self, batch: Mapping[str, Any], size: Size | None) -> Any:
        """What `forward` gets of a batch, beside latents of `size` (None where nobody knows)."""
        return batch[self.key]

    @abstractmethod
    def forward(self, values: Any) -> Conditioning:
        """The condition of each value."""

    @abstractmethod
    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """n copies of what stands for "no condition" beside latents of `size`."""

    def latent_size(self, batch: Mapping[str, Any]) -> Size | None:
        """The size of the latents that the batch's maps belong to; None where it has no map to tell."""
        return None

    def load_pretrained(self) -> None:
        """Loads foreign weights where it has some. UserError where they are missing."""
        return None

    def identity(self) -> dict[str, str]:
        """Name and hash of its frozen weights, which checkpoints leave out; empty where all is trained."""
        return {}


class Compose(nn.Module):
    """Several conditioners merged slot by slot: tokens joined along l, vectors along e, channels along k.

    They are joined in the order of `conditioners`, which is the order of the channels.

    Args:
        conditioners: by name.
        together: groups of names that one draw drops, as a mask and its masked image; equal dropout each.
    """

    def __init__(
        self, conditioners: Mapping[str, Conditioner], dropped_together: Sequence[Sequence[str]] = ()
    ) -> None:
        super().__init__()
        self.conditioners = nn.ModuleDict(dict(conditioners))
        self.dropout_column = {name: j for j, name in enumerate(conditioners)}
        for group in dropped_together:
            rates = {self._named(name).dropout for name in group}
            if len(rates) > 1:
                raise InvalidValue(
                    f"{', '.join(group)} are dropped together, so by one probability, not {sorted(rates)}"
                )
            self.dropout_column |= dict.fromkeys(group, self.dropout_column[group[0]])

    def __len__(self) -> int:
        return len(self.conditioners)

    def forward(
        self,
        batch: Mapping[str, Any],
        u: Float[Tensor, "b n"] | None = None,
        active: Collection[str] | None = None,
        size: Size | None = None,
        encode: Callable[[Tensor], Tensor] | None = None,
    ) -> Conditioning:
        """The conditions of a batch. UserError for an entry that it lacks, or a map of another size.

        Args:
            u: U[0, 1); the j-th condition of sample i is null if u[i, j] < dropout. None drops nothing.
            keep: names of the conditions to keep, all others are null; None keeps all.
            size: of the latents; None is as the batch's maps have it.
            encode: a image's latent by the first stage, for the conditioners that want one.
        """
        names = set(self.dropout_column if active is None else active)
        for name in names:
            self._named(name)
        size = self.latent_size(batch) if size is None else size
        n, parts = len(next(iter(batch.values()), ())), []  # any entry tells
        for name, conditioner in self._each():
            if name not in names:
                parts.append(conditioner.null(n, size))
                continue
            cond = conditioner(self._values(name, batch, size, encode))
            if u is not None and conditioner.dropout > 0:
                drop = u[:, self.dropout_column[name]] < conditioner.dropout
                cond = _replaced(cond, conditioner.null(1, size), drop)
            parts.append(cond)
        return _merged(parts)

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """n copies of every conditioner's null, beside latents of `size`."""
        return _merged([conditioner.null(n, size) for _, conditioner in self._each()])

    @property
    def keys(self) -> set[str]:
        """The batch's entries that some condition reads."""
        return {key for _, conditioner in self._each() for key in conditioner.keys}

    @property
    def never_dropped(self) -> list[str]:
        """Names of the conditions whose null the network does not learn."""
        return [name for name, conditioner in self._each() if conditioner.dropout == 0]

    def conditions_in(self, batch: Mapping[str, Any]) -> list[str]:
        """Names of the conditions that a batch has the entries of."""
        return [name for name, conditioner in self._each() if batch.keys() >= set(conditioner.keys)]

    def latent_size(self, batch: Mapping[str, Any]) -> Size | None:
        """The size of the latents that the batch's maps belong to; None where it has none."""
        told = self.conditions_in(batch)
        sizes = {name: size for name in told if (size := self._named(name).latent_size(batch)) is not None}
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{name} {h}x{w}" for name, (h, w) in sizes.items())
            raise UserError(f"the conditions belong to latents of several sizes ({said}): give one size")
        return next(iter(sizes.values()), None)

    def load_pretrained(self) -> None:
        """Loads every conditioner's foreign weights."""
        for _, conditioner in self._each():
            conditioner.load_pretrained()

    def identity(self) -> dict[str, dict[str, str]]:
        """Name and hash of the frozen weights, by conditioner."""
        named = {name: conditioner.identity() for name, conditioner in self._each()}
        return {name: identity for name, identity in named.items() if identity}

    def _values(
        self,
        name: str,
        batch: Mapping[str, Any],
        size: Size | None,
        encode: Callable[[Tensor], Tensor] | None,
    ) -> Any:
        conditioner = self._named(name)
        missing = sorted(set(conditioner.keys) - batch.keys())
        if missing:
            raise UserError(
                f"the condition {name} reads {', '.join(missing)}, and the batch holds only "
                f"{', '.join(sorted(batch))}: give it, or choose another conditioner=..."
            )
        own = conditioner.latent_size(batch)
        if own is not None and own != size:
            raise UserError(
                f"the condition {name} belongs to latents of {own[0]}x{own[1]}, and these have "
                f"{_written(size)}: give both one size in pixels"
            )
        values = conditioner.read(batch, size)
        if not conditioner.through_first_stage:
            return values
        assert encode is not None, f"{name} wants a latent: use LatentDiffusion.condition"
        return encode(values)

    def _named(self, name: str) -> Conditioner:
        if name not in self.conditioners:
            known = ", ".join(self.conditioners) or "none"
            raise UserError(f"there is no condition {name}: the model's are {known}")
        return self.conditioners[name]  # type: ignore[return-value]

    def _each(self) -> list[tuple[str, Conditioner]]:
        return list(self.conditioners.items())  # type: ignore[arg-type]


def _written(size: Size | None) -> str:
    return "an unknown size" if size is None else f"{size[0]}x{size[1]}"


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
