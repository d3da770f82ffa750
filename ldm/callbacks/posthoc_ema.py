"""Post-hoc EMA: power-function averages, from whose snapshots an average of any length is made afterwards.

Karras et al. (2024), "Analyzing and Improving the Training Dynamics of Diffusion Models", sections 3 and C.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from ldm.callbacks.periodic_writer import PeriodicWriter
from ldm.errors import InvalidValue, UserError
from ldm.interop import model_file
from ldm.stages.base import Stage
from ldm.typing import PositiveFloat, PositiveInt

LONGEST = 12**-0.5
"""The length of the plain mean over all steps, where gamma = 0."""


def gamma_from_length(length: float) -> float:
    """Return gamma >= 0 of sigma_rel = sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) (eq. 123).

    `length` is sigma_rel, the profile's standard deviation as a fraction of training.
    """
    if not 0 < length <= LONGEST:
        raise InvalidValue(f"an average's length must be in (0, {LONGEST:.4f}], not {length}")
    low, high = 0.0, 1 / length  # sigma_rel decreases in gamma and is less than 1/gamma
    while (middle := (low + high) / 2) not in (low, high):
        is_longer = math.sqrt((middle + 1) / (middle + 3)) / (middle + 2) > length
        low, high = (middle, high) if is_longer else (low, middle)
    return middle


@dataclass(frozen=True)
class Profile:
    """p(t) = (gamma + 1) t^gamma / steps^(gamma + 1), 0 <= t <= steps: the weight of each step (eq. 121)."""

    steps: int
    gamma: float

    def dot(self, other: "Profile") -> float:
        """Return the integral of the product of two profiles (eq. 151)."""
        first, last = (self, other) if self.steps <= other.steps else (other, self)
        scale = (first.gamma + 1) * (last.gamma + 1) / (first.gamma + last.gamma + 1)
        return scale * (first.steps / last.steps) ** last.gamma / last.steps


def fit_weights(profiles: Sequence[Profile], target: Profile) -> tuple[list[float], float]:
    """Return x with sum_i x_i p_i closest to the target profile p, and the relative error (algorithm 3).

    Least squares over training time: sum_j (p_i . p_j) x_j = p_i . p.
    """
    gram = torch.tensor([[p.dot(q) for q in profiles] for p in profiles], dtype=torch.float64)
    right = torch.tensor([p.dot(target) for p in profiles], dtype=torch.float64)
    scale = gram.diagonal().sqrt()  # thousands of times larger for early snapshots than for late ones
    x = torch.linalg.lstsq(gram / scale / scale[:, None], (right / scale)[:, None], driver="gelsd").solution
    x = x[:, 0] / scale
    norm = target.dot(target)
    error = (norm - 2 * x @ right + x @ gram @ x).clamp(min=0) / norm
    return x.tolist(), error.sqrt().item()


class PostHocEMA(PeriodicWriter):
    """average <- b average + (1 - b) parameter, b = (1 - 1/n)^(gamma + 1), after the n-th step (eq. 127).

    One average per length, in fp32, each updated by one multi-tensor operation over
    `stage.averaged_parameters()`. Their snapshots are for `python -m ldm.cli.ema`; validation, preview images
    and the model file use the average of the callback `EMA`.

    Args:
        folder: of the snapshots, `step00001000.safetensors`; each file holds all averages.
        lengths: sigma_rel of each average; 0.05 and 0.1 in the paper.
        every_n_steps: steps between snapshots; there is one of the last step as well.
    """

    def __init__(self, folder: str, lengths: Sequence[PositiveFloat], every_n_steps: PositiveInt) -> None:
        if every_n_steps < 1 or len(lengths) < 1:
            raise InvalidValue(
                f"snapshots need every_n_steps >= 1 and one length or more, not {every_n_steps} and"
                f" {list(lengths)}"
            )
        self.folder, self.every_n_steps = Path(folder), every_n_steps
        self.gammas = [gamma_from_length(length) for length in lengths]
        self.num_updates = 0
        self.averages: list[dict[str, Tensor]] = []

    def on_fit_start(self, trainer: Trainer, stage: Stage) -> None:
        """Initialise the averages with the parameters, or move those of a checkpoint to the device."""
        parameters = stage.averaged_parameters()
        start = self.averages or [{name: p.detach() for name, p in parameters.items()}] * len(self.gammas)
        self.averages = [
            {name: average[name].to(p.device, torch.float32, copy=True) for name, p in parameters.items()}
            for average in start
        ]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        """Update the averages, and save a snapshot every `every_n_steps`."""
        self.num_updates += 1
        parameters = [p.float() for p in stage.averaged_parameters().values()]
        for average, gamma in zip(self.averages, self.gammas, strict=True):
            beta = (1 - 1 / self.num_updates) ** (gamma + 1)
            torch._foreach_lerp_(list(average.values()), parameters, 1 - beta)
        super().on_train_batch_end(trainer, stage)

    def save(self, trainer: Trainer, stage: Stage) -> None:
        """Write this step's snapshot."""
        tensors = {f"{i}/{k}": v for i, average in enumerate(self.averages) for k, v in average.items()}
        gammas = " ".join(map(repr, self.gammas))
        path = self.folder / f"step{trainer.global_step:08d}.safetensors"
        header = {"updates": str(self.num_updates), "gammas": gammas}
        model_file.save(path, tensors, {}, "ema_snapshot", header)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages, their gammas and the number of updates."""
        return {"num_updates": self.num_updates, "averages": self.averages, "gammas": self.gammas}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the averages and the number of updates; UserError if the checkpoint's lengths are others."""
        if state_dict["gammas"] != self.gammas:
            raise UserError(
                "callbacks.post_hoc.lengths differ from those in the checkpoint: resume with the lengths that"
                " the run was started with"
            )
        self.num_updates, self.averages = state_dict["num_updates"], state_dict["averages"]


@dataclass(frozen=True)
class Snapshot:
    """A file of averages, and the profile of each."""

    path: Path
    step: int
    profiles: tuple[Profile, ...]


def list_snapshots(folder: str | Path) -> list[Snapshot]:
    """Return the snapshots in a folder, ordered by step; UserError if there are none."""
    snapshots = []
    for path in sorted(Path(folder).glob("step*.safetensors")):
        if match := re.fullmatch(r"step(\d+)\.safetensors", path.name):
            header = model_file.read_header(path, "ema_snapshot")
            steps, gammas = int(header["updates"]), map(float, header["gammas"].split())
            profiles = tuple(Profile(steps, gamma) for gamma in gammas)
            snapshots.append(Snapshot(path, int(match[1]), profiles))
    if not snapshots:
        raise UserError(
            f"there are no EMA snapshots in {folder}: train with callbacks=post_hoc, which writes them"
        )
    return snapshots


def combine(snapshots: Sequence[Snapshot], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return sum_i x_i average_i over all averages of all snapshots, in fp32; holds one file in memory."""
    total: dict[str, Tensor] = {}
    remaining = list(weights)
    for snapshot in snapshots:
        tensors, _, _ = model_file.load(snapshot.path, "ema_snapshot")
        for i in range(len(snapshot.profiles)):
            _add(total, tensors, f"{i}/", remaining.pop(0))
    assert not remaining, "one weight per average"
    return {name: value.float() for name, value in total.items()}


def _add(total: dict[str, Tensor], tensors: Mapping[str, Tensor], prefix: str, weight: float) -> None:
    for key, value in tensors.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            # In double precision, since large weights of both signs nearly cancel.
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + weight * value.double()
