"""Compare a resumed run's settings with its checkpoint's, and decide which may change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.cli.config.messages import hint
from ldm.cli.training import run_config
from ldm.cli.training.run_config import format_setting
from ldm.data.datamodule import ShardDataModule
from ldm.errors import UserError
from ldm.stages.base import OptimizerFactory


class Effect(Enum):
    """What a setting that has changed does to a resumed run."""

    NONE = "the training computes the same"
    APPLIED = "the further steps are taken with the new value"
    MIXED = "the result is of neither value, so the change must be allowed by name"


EFFECTS = (
    # the first pattern that a key matches decides
    ("optimizer.*", Effect.APPLIED),
    ("stage.optimizer.*", Effect.APPLIED),  # where it no longer is ${optimizer}
    ("learning_rate.*", Effect.APPLIED),
    ("stage.learning_rate.*", Effect.APPLIED),
    ("stage.gradient_clip", Effect.APPLIED),
    ("callbacks.ema*", Effect.APPLIED),
    ("callbacks.post_hoc", Effect.APPLIED),
    ("callbacks.skip_bad_steps*", Effect.APPLIED),
    ("trainer.precision", Effect.APPLIED),
    ("trainer.sync_batchnorm", Effect.APPLIED),
    ("callbacks.post_hoc.lengths", Effect.MIXED),
    ("callbacks.*", Effect.NONE),
    ("logger.*", Effect.NONE),
    ("trainer.*", Effect.NONE),  # devices, nodes and number of steps; only rounding depends on them
    ("*.activation_checkpointing", Effect.NONE),
    ("data.shards", Effect.NONE),  # a path; that the samples are the same, the loader checks
    ("data.val_*", Effect.NONE),
    ("data.index", Effect.NONE),
    ("data.cache*", Effect.NONE),
    ("data.num_workers", Effect.NONE),
    ("data.start_method", Effect.NONE),
    ("data.max_bad_rate", Effect.NONE),
    ("first_stage", Effect.NONE),  # a path; `model_checks` compares the weights
    ("stage.micro_batch_size", Effect.NONE),
    ("stage.log_every", Effect.NONE),
    ("stage.prompts", Effect.NONE),
    ("stage.preview_*", Effect.NONE),
    ("stage.num_condition_examples", Effect.NONE),
    ("stage.statistics_batches", Effect.NONE),
    ("*", Effect.MIXED),  # model, losses, conditions, noise schedule, seed, batch size, data
)
NOT_EXACT = (
    (
        "data.global_batch_size",
        "each sample of the epoch is read once, but learning-rate schedule and EMA count steps, not images, "
        "and the learning rate is not rescaled",
    ),
    ("data.order*", "samples of this epoch may be read twice or not at all"),
    ("seed", "samples of this epoch may be read twice or not at all, and all noise is another"),
)
"""What is no longer exact after an allowed change, besides the result: by pattern of the key."""
NEVER = {
    "init": "remove init, since a resumed run keeps its weights, or start a new run=FOLDER with it",
    "callbacks.post_hoc.lengths": "set it back, since averages keep theirs, or use callbacks.post_hoc=null",
}
"""What to do about a change that cannot be allowed."""
COPIES = ("data.steps", "stage.first_stage_weights")
"""Copies of trainer.max_steps and first_stage."""
LISTED = 3
"""Number of refused settings that an error names in full."""


@dataclass(frozen=True)
class Change:
    """A setting whose value differs from the checkpoint's."""

    key: str
    before: Any
    now: Any

    @property
    def effect(self) -> Effect:
        return next(effect for pattern, effect in EFFECTS if fnmatchcase(self.key, pattern))

    def __str__(self) -> str:
        return f"{self.key}: {format_setting(self.before)} -> {format_setting(self.now)}"


@dataclass(frozen=True)
class Changes:
    """What to print when a run is resumed, and what to record of it for good."""

    printed: list[str] = field(default_factory=list)
    recorded: list[str] = field(default_factory=list)


def find_changes(
    checkpoint: Mapping[str, Any], path: Path, config: Mapping[str, Any], allowed: Sequence[str]
) -> Changes:
    """Return the settings changed since the checkpoint; UserError for those that `allowed` must name."""
    before, source = _read_config(checkpoint, path)
    _check_names(allowed, [before, config])
    if not before:
        return Changes([f"{path} does not record its settings: they are not compared with those of this run"])
    _check_stage(before, config, source)
    changes = [Change(*difference) for difference in run_config.differences(before, config)]
    changes = [change for change in changes if not _is_irrelevant(change, before)]
    _check_batch_size(changes, config)
    _refuse([c for c in changes if c.effect is Effect.MIXED and not _is_allowed(c.key, allowed)], source)
    step = checkpoint["global_step"]
    unaffected = [f"changed since {source}: {c}" for c in changes if c.effect is Effect.NONE]
    effective = [c for c in changes if c.effect is not Effect.NONE]
    recorded = [*before.get("changes", []), *(f"{c} after step {step}" for c in effective)]
    return Changes(unaffected + [_describe(c, step) for c in effective], recorded)


def check_samples(checkpoint: Mapping[str, Any], data: ShardDataModule) -> list[str]:
    """Return a sentence if other samples are read by permission; UserError if that is not allowed."""
    (state,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    loader = data.train_dataloader()
    loader.load_state_dict(state)
    if state["manifest"] == loader.order_hash:
        return []
    step, note = checkpoint["global_step"], dict(NOT_EXACT)["data.order*"]
    return [f"data.shards or data.order: other samples after step {step}, as allowed: {note}"]


def check_optimizer_state(checkpoint: Mapping[str, Any], path: Path, factory: OptimizerFactory) -> None:
    """Raise UserError if this run's optimizer cannot continue from the tensors of the checkpoint's."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    optimizer = factory([parameter])
    optimizer.step()
    needed = set(optimizer.state[parameter])
    for state in checkpoint["optimizer_states"]:
        saved = set(next(iter(state["state"].values()), needed))  # empty before the discriminator is trained
        if saved != needed:
            raise UserError(
                f"the optimizer's state in {path} ({', '.join(sorted(saved))}) does not fit optimizer="
                f"{type(optimizer).__name__} with these settings ({', '.join(sorted(needed)) or 'none'}): "
                "use optimizer.* of that run, or start a new run=FOLDER from its weights with init=..."
            )


def _read_config(checkpoint: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], Path]:
    """Return the config in the checkpoint, or in its run's folder if an older version wrote it; and where."""
    recorded = checkpoint.get("ldm", {}).get("config")
    if recorded:
        return recorded, path
    folder = path.parent.parent
    return run_config.read(folder), folder / run_config.FILE


def _check_names(allowed: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError unless `allow_changes` is a list of settings."""
    if isinstance(allowed, str):
        raise UserError(f"allow_changes must be a list, not {allowed}: give allow_changes=[{allowed}]")
    known = [key for config in configs for key, _ in run_config.flatten(config, nodes=True)]
    for name in allowed:
        if name not in known:
            raise UserError(
                f"allow_changes names {name}, which is no setting:{hint(name, known)} give the keys of "
                "settings or groups, as in allow_changes=[data.global_batch_size]"
            )


def _check_stage(before: Mapping[str, Any], config: Mapping[str, Any], source: Path) -> None:
    stages = [str(c["stage"]["_target_"]).rpartition(".")[2] for c in (before, config)]
    if stages[0] != stages[1]:
        raise UserError(
            f"{source} is from a run of the {stages[0]}, but this run is of the {stages[1]}: choose the "
            "experiment=... of that run, or start a new run=FOLDER"
        )


def _is_irrelevant(change: Change, before: Mapping[str, Any]) -> bool:
    """Whether nothing is built from the change itself, or it is listed elsewhere.

    It is no longer `init`, an unknown precision, or a number at the top that older configs lack: the settings
    interpolated from that are compared.
    """
    if change.key == "trainer.precision":
        return "auto" in (change.before, change.now)
    if change.key in COPIES:
        return True
    is_new = "." not in change.key and change.key not in before and not isinstance(change.now, Mapping)
    return is_new or (change.key == "init" and change.now is None)


def _check_batch_size(changes: Sequence[Change], config: Mapping[str, Any]) -> None:
    """Raise UserError for another batch size where the order of samples depends on it."""
    order = config["data"].get("order") or {}
    by_batch = order.get("buckets") or order.get("lanes", 1) > 1
    if by_batch and any(change.key == "data.global_batch_size" for change in changes):
        raise UserError(
            "data.global_batch_size cannot change in a resumed run with data.order.buckets or "
            "data.order.lanes, which order the samples by batches: set it back, or start a new run=FOLDER"
        )


def _is_allowed(key: str, allowed: Sequence[str]) -> bool:
    return key not in NEVER and any(f"{key}.".startswith(f"{name}.") for name in allowed)


def _refuse(changes: Sequence[Change], source: Path) -> None:
    """Raise UserError that names the changes, if there are any."""
    if not changes:
        return
    never = [change for change in changes if change.key in NEVER][:1]
    listed, more = never or changes[:LISTED], len(changes) - LISTED
    it, names = "it" if len(changes) == 1 else "them", ",".join(change.key for change in changes)
    advice = f"set {it} back, start a new run=FOLDER, or allow {it} with allow_changes=[{names}]"
    before, now = (
        ", ".join(f"{c.key}={format_setting(value)}" for c, value in zip(listed, values, strict=True))
        for values in ([c.before for c in listed], [c.now for c in listed])
    )
    raise UserError(
        f"{source} is from a run with {before}, but this run has {now}"
        f"{f' and {more} more changes' if more > 0 else ''}: {NEVER[never[0].key] if never else advice}"
    )


def _describe(change: Change, step: int) -> str:
    if change.effect is Effect.APPLIED:
        return f"{change} after step {step}"
    notes = [note for pattern, note in NOT_EXACT if fnmatchcase(change.key, pattern)]
    notes = notes or ["the result is that of neither value"]
    return f"{change} after step {step}, as allowed: {notes[0]}"
