"""Averages with power-function profiles, from whose snapshots any length is made after training.

Karras et al. (2024), "Analyzing and Improving the Training Dynamics of Diffusion Models", sections 3 and C.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from ldm.errors import InvalidValue, UserError
from ldm.interop import model_file
from ldm.stages.base import Stage

LONGEST = 12**-0.5
"""The length of the plain mean over all steps, gamma = 0."""


def gamma_from_length(length: float) -> float:
    """gamma >= 0 of sigma_rel = sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) (eq. 123).

    `length` is sigma_rel, the profile's standard deviation over the length of training.
    """
    if not 0 < length <= LONGEST:
        raise InvalidValue(f"an average's length must lie in (0, {LONGEST:.4f}], not {length}")
    low, high = 0.0, 1 / length  # sigma_rel falls with gamma, and is below 1/gamma
    while (middle := (low + high) / 2) not in (low, high):
        longer = math.sqrt((middle + 1) / (middle + 3)) / (middle + 2) > length
        low, high = (middle, high) if longer else (low, middle)
    return middle


@dataclass(frozen=True)
class Profile:
    """p(t) = (gamma + 1) t^gamma / steps^(gamma + 1), 0 <= t <= steps: the weight of each step (eq. 121)."""

    steps: int
    gamma: float

    def dot(self, other: "Profile") -> float:
        """The integral of the two profiles' product (eq. 151)."""
        first, last = (self, other) if self.steps <= other.steps else (other, self)
        scale = (first.gamma + 1) * (last.gamma + 1) / (first.gamma + last.gamma + 1)
        return scale * (first.steps / last.steps) ** last.gamma / last.steps


def fit_weights(profiles: Sequence[Profile], wanted: Profile) -> tuple[list[float], float]:
    """x with sum_i x_i p_i nearest to the wanted profile, and how far it stays, as a share of it (alg. 3).

    Least squares over the time of training: sum_j (p_i . p_j) x_j = p_i . p.
    """
    gram = torch.tensor([[p.dot(q) for q in profiles] for p in profiles], dtype=torch.float64)
    right = torch.tensor([p.dot(wanted) for p in profiles], dtype=torch.float64)
    scale = gram.diagonal().sqrt()  # of early snapshots it is thousands of times that of late ones
    x = torch.linalg.lstsq(gram / scale / scale[:, None], (right / scale)[:, None], driver="gelsd").solution
    x = x[:, 0] / scale
    square = wanted.dot(wanted)
    missed = (square - 2 * x @ right + x @ gram @ x).clamp(min=0) / square
    return x.tolist(), missed.sqrt().item()


class PostHocEMA(Callback):
    """average <- b average + (1 - b) parameter, b = (1 - 1/n)^(gamma + 1), after the n-th step (eq. 127).

    One average a length, in fp32, each one multi-tensor operation over `stage.averaged_parameters()`. They
    are for `python -m ldm.cli.ema`; images and the model file have the average of the callback `EMA`.

    Args:
        folder: of the snapshots, `step00001000.safetensors`, each of all averages.
        lengths: sigma_rel of each average; the paper's are 0.05 and 0.1.
        every_n_steps: between snapshots; the last step has one, too.
    """

    def __init__(self, folder: str, lengths: Sequence[float], every_n_steps: int) -> None:
        if every_n_steps < 1 or len(lengths) < 1:
            raise InvalidValue(
                f"snapshots need every_n_steps >= 1 and a length, not {every_n_steps} and {list(lengths)}"
            )
        self.folder, self.every_n_steps = Path(folder), every_n_steps
        self.gammas = [gamma_from_length(length) for length in lengths]
        self.num_updates = 0
        self.averages: list[dict[str, Tensor]] = []

    def on_fit_start(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """Make room, or move what a checkpoint brought to the device."""
        parameters = stage.averaged_parameters()
        start = self.averages or [{name: p.detach() for name, p in parameters.items()}] * len(self.gammas)
        self.averages = [
            {name: average[name].to(p.device, torch.float32, copy=True) for name, p in parameters.items()}
            for average in start
        ]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:  # type: ignore[override]
        """One update, and a snapshot where the step divides."""
        self.num_updates += 1
        parameters = [p.float() for p in stage.averaged_parameters().values()]
        for average, gamma in zip(self.averages, self.gammas, strict=True):
            beta = (1 - 1 / self.num_updates) ** (gamma + 1)
            torch._foreach_lerp_(list(average.values()), parameters, 1 - beta)
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step < trainer.max_steps:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """The last snapshot."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write this step's snapshot."""
        if not trainer.is_global_zero:
            return
        tensors = {f"{i}/{k}": v for i, average in enumerate(self.averages) for k, v in average.items()}
        gammas = " ".join(map(repr, self.gammas))
        path = self.folder / f"step{trainer.global_step:08d}.safetensors"
        header = {"updates": str(self.num_updates), "gammas": gammas}
        model_file.save(path, tensors, {}, "ema_snapshot", header)

    def state_dict(self) -> dict[str, Any]:
        """The averages and the number of updates."""
        return {"num_updates": self.num_updates, "averages": self.averages, "gammas": self.gammas}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly. UserError where the checkpoint's averages have other lengths."""
        if state_dict["gammas"] != self.gammas:
            raise UserError(
                "the checkpoint's averages have other lengths: resume with the lengths it was begun with"
            )
        self.num_updates, self.averages = state_dict["num_updates"], state_dict["averages"]


@dataclass(frozen=True)
class Snapshot:
    """A file of averages."""

    path: Path
    step: int
    profiles: tuple[Profile, ...]


def snapshots(folder: str | Path) -> list[Snapshot]:
    """The snapshots in a folder, by step. UserError where there is none."""
    found = []
    for path in sorted(Path(folder).glob("step*.safetensors")):
        if match := re.fullmatch(r"step(\d+)\.safetensors", path.name):
            header = model_file.read_header(path, "ema_snapshot")
            steps, gammas = int(header["updates"]), map(float, header["gammas"].split())
            profiles = tuple(Profile(steps, gamma) for gamma in gammas)
            found.append(Snapshot(path, int(match[1]), profiles))
    if not found:
        raise UserError(
            f"there is no snapshot of averages in {folder}: train with callbacks=post_hoc, which writes them"
        )
    return found


def combine(chosen: Sequence[Snapshot], weights: Sequence[float]) -> dict[str, Tensor]:
    """sum_i x_i average_i over all averages of all snapshots, in order, in fp32; holds one file at a time."""
    total: dict[str, Tensor] = {}
    left = list(weights)
    for snapshot in chosen:
        tensors, _, _ = model_file.load(snapshot.path, "ema_snapshot")
        for i in range(len(snapshot.profiles)):
            _add(total, tensors, f"{i}/", left.pop(0))
    assert not left, "one weight for each average"
    return {name: value.float() for name, value in total.items()}


def _add(total: dict[str, Tensor], tensors: Mapping[str, Tensor], prefix: str, weight: float) -> None:
    for key, value in tensors.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            # In double precision: weights of both signs are larger than what is left of them.
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + weight * value.double()
