"""A trained model's weights as the start of one with more channels in, or with other conditions."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.errors import UserError


@dataclass(frozen=True)
class ExpandedWeights:
    """All tensors of the new model, and the names of those that the old one did not have as they are."""

    tensors: dict[str, Tensor]
    widened: list[str]
    """With zeros for further channels in, so that the new model begins as the old one."""
    new: list[str]
    """As the new model was initialised."""
    left: list[str]
    """The old model's alone."""


def expand_inputs(own: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> ExpandedWeights:
    """`own`, with the tensors of `old` wherever it has them: by name.

    A convolution with more channels in than its old one gets zeros for those, which stand behind the others:
    so Stable Diffusion's models of masks and depth began. UserError for any other difference of shapes.
    """
    made, widened = dict(own), []
    for name in own.keys() & old.keys():
        made[name] = (
            old[name] if old[name].shape == own[name].shape else pad_with_zeros(name, own[name], old[name])
        )
        if old[name].shape != own[name].shape:
            widened.append(name)
    return ExpandedWeights(
        made, sorted(widened), sorted(own.keys() - old.keys()), sorted(old.keys() - own.keys())
    )


def pad_with_zeros(name: str, own: Tensor, old: Tensor) -> Tensor:
    """A convolution's old weight in the new one's shape."""
    shapes = tuple(old.shape), tuple(own.shape)
    same = own.ndim == old.ndim == 4 and (own.shape[0], *own.shape[2:]) == (old.shape[0], *old.shape[2:])
    if not same or own.shape[1] < old.shape[1]:
        raise UserError(
            f"{name} is {shapes[0]} in the file and {shapes[1]} here: only more channels into a convolution "
            "can be added"
        )
    more = torch.zeros(own.shape[0], own.shape[1] - old.shape[1], *own.shape[2:], dtype=old.dtype)
    return torch.cat([old, more], dim=1)
