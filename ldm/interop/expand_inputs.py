"""A trained model's weights as the start of one with more input channels or with other conditions."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.errors import UserError


@dataclass(frozen=True)
class ExpandedWeights:
    """All tensors of the new model, and the names of those that are not copied from the old one unchanged."""

    tensors: dict[str, Tensor]
    padded: list[str]
    """Convolutions padded with zeros for added input channels: the new model starts out as the old one."""
    new: list[str]
    """Missing in the old model; these keep the new model's initialisation."""
    unused: list[str]
    """Only in the old model."""


def expand_inputs(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> ExpandedWeights:
    """Return the new model's tensors with those of the old one copied in by name.

    A convolution with more input channels gets zeros for the added ones, which come after the old ones, as
    Stable Diffusion's inpainting and depth models did. UserError for any other difference of shapes.
    """
    tensors, padded = dict(new), []
    for name in new.keys() & old.keys():
        if old[name].shape == new[name].shape:
            tensors[name] = old[name]
        else:
            tensors[name] = pad_with_zeros(name, new[name], old[name])
            padded.append(name)
    return ExpandedWeights(
        tensors, sorted(padded), sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
    )


def pad_with_zeros(name: str, new: Tensor, old: Tensor) -> Tensor:
    """Return a convolution's old weight in the shape of the new one, zero in the added input channels."""
    is_convolution = old.ndim == new.ndim == 4
    if (
        not is_convolution
        or (new.shape[0], *new.shape[2:]) != (old.shape[0], *old.shape[2:])
        or new.shape[1] < old.shape[1]
    ):
        raise UserError(
            f"{name} is {tuple(old.shape)} in the file and {tuple(new.shape)} in this model: expand_inputs"
            " can only add input channels of a convolution"
        )
    zeros = torch.zeros(new.shape[0], new.shape[1] - old.shape[1], *new.shape[2:], dtype=old.dtype)
    return torch.cat([old, zeros], dim=1)
