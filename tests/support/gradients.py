"""Every parameter's gradient beside the peer's, one by one: a maximum over all hides the small layers."""

from torch import Tensor, nn

SMALL = 1e-3
"""Of the largest gradient of all: a parameter with less has a gradient of 0, as a bias before a norm."""
ROUNDING = 5e-3
"""Of the largest gradient of all: the unit for those, so that 1e-4 is some digits of fp32's last."""


def gradient_errors(ours: nn.Module, theirs: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference in each parameter, in units of its own largest gradient.

    `theirs` has the peer's gradients under our names, and no others.
    """
    mine = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert mine.keys() == theirs.keys() == dict(ours.named_parameters()).keys()
    own = {name: g.abs().max().item() for name, g in theirs.items()}
    top = max(own.values())
    units = {name: value if value > SMALL * top else ROUNDING * top for name, value in own.items()}
    return {name: (mine[name] - g).abs().max().item() / units[name] for name, g in theirs.items()}


def assert_same_gradients(ours: nn.Module, theirs: dict[str, Tensor], limit: float = 1e-4) -> None:
    """Within the limit, or the names of those that are not."""
    wrong = {name: error for name, error in gradient_errors(ours, theirs).items() if not error < limit}
    assert not wrong, wrong
