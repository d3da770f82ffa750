"""Optimizers and learning rates that follow the config, also in a run resumed with another one.

PyTorch's own `load_state_dict` replaces learning rate, weight decay and the rest by those of the checkpoint.
"""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class LearningRateSchedule(LambdaLR):
    """lr(n) = lr factor(n) at step n; a checkpoint restores n alone."""

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        # A plain function, since LambdaLR saves the attributes of any other callable in the checkpoint.
        super().__init__(optimizer, lambda step: factor(step))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the checkpoint's step, with the learning rate of this run."""
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        factors = [factor(self.last_epoch) for factor in self.lr_lambdas]
        self._last_lr = [lr * factor for lr, factor in zip(self.base_lrs, factors, strict=True)]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def keep_hyperparameters(optimizer: Optimizer) -> None:
    """Let a checkpoint restore the optimizer's moments, but not its hyperparameters."""
    optimizer.register_load_state_dict_pre_hook(_replace_hyperparameters)


def _replace_hyperparameters(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    groups = zip(optimizer.param_groups, state["param_groups"], strict=True)
    return {**state, "param_groups": [{**own, "params": saved["params"]} for own, saved in groups]}
