"""Compare gradients per parameter: one maximum over all parameters hides layers with small gradients."""

from torch import Tensor, nn

SMALL = 1e-3
"""Relative to the largest gradient: below this a gradient counts as 0, e.g. of a bias before a norm."""
ROUNDING = 5e-3
"""Relative to the largest gradient: the unit for those, so that 1e-4 is a few fp32 rounding errors."""


def gradient_errors(ours: nn.Module, theirs: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest difference per parameter, in units of its own largest gradient.

    `theirs` has the reference gradients, under our names and of the same parameters.
    """
    mine = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert mine.keys() == theirs.keys() == dict(ours.named_parameters()).keys()
    largest = {name: g.abs().max().item() for name, g in theirs.items()}
    top = max(largest.values())
    units = {name: value if value > SMALL * top else ROUNDING * top for name, value in largest.items()}
    return {name: (mine[name] - g).abs().max().item() / units[name] for name, g in theirs.items()}


def assert_same_gradients(ours: nn.Module, theirs: dict[str, Tensor], limit: float = 1e-4) -> None:
    """Assert that all errors are within the limit; the message has the others."""
    wrong = {name: error for name, error in gradient_errors(ours, theirs).items() if not error < limit}
    assert not wrong, wrong
