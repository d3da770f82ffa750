"""The base class of conditioners, and `Compose`, which combines several and drops them in training."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm.errors import InvalidValue, UserError
from ldm.typing import Conditioning

Size: TypeAlias = tuple[int, int]
"""(height, width) of the latent."""


class Conditioner(nn.Module, ABC):
    """tau_theta(y): an encoder of one batch key as tokens, a vector or channels (Rombach et al. 2022, 3.3).

    Args:
        batch_key: the key of its input in the batch.
        dropout: the probability that a training sample gets the null condition, for classifier-free guidance
            (Ho and Salimans 2022, algorithm 1). At 0 the network never learns the null, and guidance
            does not drop the condition either.
    """

    needs_first_stage: ClassVar[bool] = False
    """Whether the frozen first stage encodes the image from `read` to a latent before `forward`."""
    device_tracker: Tensor

    def __init__(self, batch_key: str, dropout: float) -> None:
        super().__init__()
        if not 0 <= dropout <= 1:
            raise InvalidValue(f"dropout must be a probability in 0..1, not {dropout}")
        self.batch_key, self.dropout = batch_key, dropout
        self.register_buffer("device_tracker", torch.zeros(()), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the conditioner."""
        return self.device_tracker.device

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """All batch keys that the conditioner needs."""
        return (self.batch_key,)

    def read(self, batch: Mapping[str, Any], size: Size | None) -> Any:
        """Return the input of `forward`, for latents of `size` (None if unknown)."""
        return batch[self.batch_key]

    @abstractmethod
    def forward(self, values: Any) -> Conditioning:
        """Encode the values, one condition per sample."""

    @abstractmethod
    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return n copies of the null condition ("no condition") for latents of `size`."""

    def latent_size(self, batch: Mapping[str, Any]) -> Size | None:
        """Return the latent size that matches the batch's map or image; None without one."""
        return None

    def load_pretrained(self) -> None:
        """Load the pretrained weights, if any. UserError if they are missing."""
        return None

    def describe_frozen_weights(self) -> dict[str, str]:
        """Return name and hash of the frozen weights, which checkpoints leave out; empty if none."""
        return {}


class Compose(nn.Module):
    """Several conditioners, their outputs concatenated: tokens along l, vectors along e, channels along k.

    The order of concatenation is that of `conditioners`.

    Args:
        conditioners: by name.
        dropped_together: groups of conditions, by name, that are always dropped together, such as a mask and
            the masked image; all conditions of a group need the same dropout.
    """

    def __init__(
        self, conditioners: Mapping[str, Conditioner], dropped_together: Sequence[Sequence[str]] = ()
    ) -> None:
        super().__init__()
        self.conditioners = nn.ModuleDict(dict(conditioners))
        self.dropout_column = {name: j for j, name in enumerate(conditioners)}
        for group in dropped_together:
            probabilities = {self._conditioner(name).dropout for name in group}
            if len(probabilities) > 1:
                raise InvalidValue(
                    f"dropped_together: {', '.join(group)} need the same dropout, not {sorted(probabilities)}"
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
        """Encode a batch. UserError for a missing key, or a map that does not match the size of the latents.

        Args:
            u: U[0, 1); condition j of sample i is null if u[i, j] < dropout. None drops nothing.
            active: names of the conditions to use; all others are null. None uses all.
            size: of the latents; None takes it from the batch's maps.
            encode: the first stage's encoder from images to latents, for `needs_first_stage`.
        """
        names = set(self.dropout_column if active is None else active)
        for name in names:
            self._conditioner(name)
        size = self.latent_size(batch) if size is None else size
        n, parts = len(next(iter(batch.values()), ())), []  # every batch key has n samples
        for name, conditioner in self._items():
            if name not in names:
                parts.append(conditioner.null(n, size))
                continue
            cond = conditioner(self._inputs(name, batch, size, encode))
            if u is not None and conditioner.dropout > 0:
                drop = u[:, self.dropout_column[name]] < conditioner.dropout
                cond = _drop(cond, conditioner.null(1, size), drop)
            parts.append(cond)
        return _merge(parts)

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return n copies of the null conditions of all conditioners, for latents of `size`."""
        return _merge([conditioner.null(n, size) for _, conditioner in self._items()])

    @property
    def batch_keys(self) -> set[str]:
        """All batch keys that the conditioners need."""
        return {key for _, conditioner in self._items() for key in conditioner.batch_keys}

    @property
    def never_dropped(self) -> list[str]:
        """Names of the conditions without dropout, whose null the network does not learn."""
        return [name for name, conditioner in self._items() if conditioner.dropout == 0]

    def conditions_in(self, batch: Mapping[str, Any]) -> list[str]:
        """Return the names of the conditions whose batch keys are all present."""
        return [name for name, part in self._items() if batch.keys() >= set(part.batch_keys)]

    def latent_size(self, batch: Mapping[str, Any]) -> Size | None:
        """Return the latent size that matches the batch's maps; None without maps."""
        sizes = {}
        for name in self.conditions_in(batch):
            if (size := self._conditioner(name).latent_size(batch)) is not None:
                sizes[name] = size
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {h}x{w}" for name, (h, w) in sizes.items())
            raise UserError(f"the conditions are for latents of different sizes ({listed}): use one size")
        return next(iter(sizes.values()), None)

    def load_pretrained(self) -> None:
        """Load the pretrained weights of every conditioner."""
        for _, conditioner in self._items():
            conditioner.load_pretrained()

    def describe_frozen_weights(self) -> dict[str, dict[str, str]]:
        """Return name and hash of the frozen weights, by conditioner."""
        identities = {name: conditioner.describe_frozen_weights() for name, conditioner in self._items()}
        return {name: identity for name, identity in identities.items() if identity}

    def _inputs(
        self,
        name: str,
        batch: Mapping[str, Any],
        size: Size | None,
        encode: Callable[[Tensor], Tensor] | None,
    ) -> Any:
        conditioner = self._conditioner(name)
        missing = sorted(set(conditioner.batch_keys) - batch.keys())
        if missing:
            needed = ", ".join(f"batch[{key!r}]" for key in missing)
            raise UserError(
                f"condition '{name}' needs {needed}, but the batch only has {', '.join(sorted(batch))}: add "
                "its field to data.spatial_fields (or extra_fields, derived_fields), or choose another "
                "conditioner"
            )
        map_size = conditioner.latent_size(batch)
        if map_size is not None and map_size != size:
            raise UserError(
                f"condition '{name}' is for {_format_size(map_size)} latents, but the latents are "
                f"{_format_size(size)}: use the same image size for both"
            )
        values = conditioner.read(batch, size)
        if not conditioner.needs_first_stage:
            return values
        assert encode is not None, f"condition '{name}' needs the first stage: use LatentDiffusion.condition"
        return encode(values)

    def _conditioner(self, name: str) -> Conditioner:
        if name not in self.conditioners:
            names = ", ".join(self.conditioners) or "none"
            raise UserError(f"there is no condition '{name}': this model has {names}")
        return self.conditioners[name]  # type: ignore[return-value]

    def _items(self) -> list[tuple[str, Conditioner]]:
        return list(self.conditioners.items())  # type: ignore[arg-type]


def repeat_samples(cond: Conditioning, n: int) -> Conditioning:
    """Return the condition of one sample for n samples, without a copy."""
    values = {field.name: getattr(cond, field.name) for field in fields(Conditioning)}
    return Conditioning(**{k: None if v is None else v.expand(n, *v.shape[1:]) for k, v in values.items()})


def _format_size(size: Size | None) -> str:
    return "of unknown size" if size is None else f"{size[0]}x{size[1]}"


def _drop(cond: Conditioning, null: Conditioning, drop: Bool[Tensor, " b"]) -> Conditioning:
    """Replace the conditions of the samples in `drop` with the null."""

    def select(value: Tensor | None, null_value: Tensor | None) -> Tensor | None:
        if value is None or null_value is None:
            assert value is null_value, "a conditioner's null must fill the same fields as its conditions"
            return None
        mask = drop.to(value.device).view(-1, *[1] * (value.ndim - 1))
        return torch.where(mask, null_value.to(value.dtype), value)

    values = {f.name: select(getattr(cond, f.name), getattr(null, f.name)) for f in fields(Conditioning)}
    return Conditioning(**values)


def _merge(parts: list[Conditioning]) -> Conditioning:
    """Concatenate the parts field by field; a context without a mask gets one where another has a mask."""

    def concatenate(field: str) -> Tensor | None:
        values = [value for part in parts if (value := getattr(part, field)) is not None]
        return torch.cat(values, dim=1) if values else None

    if any(part.context_mask is not None for part in parts):
        parts = [_with_mask(part) for part in parts]
    return Conditioning(**{f.name: concatenate(f.name) for f in fields(Conditioning)})


def _with_mask(cond: Conditioning) -> Conditioning:
    """Return the condition with a mask for its context, if it has one: by default all of its tokens."""
    if cond.context is None or cond.context_mask is not None:
        return cond
    mask = torch.ones(cond.context.shape[:2], dtype=torch.bool, device=cond.context.device)
    return replace(cond, context_mask=mask)
