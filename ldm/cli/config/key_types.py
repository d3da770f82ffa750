"""The types and ranges of keys that are no arguments of ours: those of commands, and of other libraries."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from ldm.data.fields.colours import Background
from ldm.data.prepare.encode_record import Format
from ldm.typing import (
    Channels,
    FiniteFloat,
    Length,
    NonNegativeFloat,
    NonNegativeInt,
    Pixels,
    PositiveFloat,
    PositiveInt,
    Proportion,
    Range,
    Seed,
)

BatchSize = Annotated[int, Range(1, 2**16)]
Images = Annotated[int, Range(1, 10**6)]
Processes = Annotated[int, Range(0, 1024)]

COMMANDS: Mapping[str, Mapping[str, Any]] = {
    "train": {"seed": Seed},
    "expand_inputs": {"seed": Seed},
    "sample": {
        "n": Images,
        "seed": Seed,
        "steps": PositiveInt,
        "scale": FiniteFloat,
        "aesthetic": FiniteFloat,
        "negative_aesthetic": FiniteFloat | None,
        "batch_size": BatchSize,
        "grid_scale": Annotated[int, Range(0, 64)],
        "tile": Pixels | None,
        "overwrite": bool,
        "prompt_chunks": Annotated[int, Range(1, 64)] | None,
        "prompt_weights": bool,
    },
    "evaluate": {
        "n": Annotated[int, Range(2, 10**6)],  # the chance level compares captions with one another
        "seed": Seed,
        "steps": PositiveInt,
        "scale": FiniteFloat,
        "aesthetic": FiniteFloat,
        "batch_size": BatchSize,
    },
    "pack": {
        "shard_size": PositiveInt,
        "size": Pixels | None,
        "channels": Channels,
        "format": Format | None,
        "background": Background,
        "workers": Processes | None,
    },
    "index": {"facts": bool, "sums": bool, "leave_out": bool, "workers": Processes | None},
    "verify": {"workers": Processes | None},
    "encode_latents": {
        "size": Pixels,
        "crops": Annotated[int, Range(0, 1000)],
        "flip": bool,
        "batch_size": BatchSize,
        "num_workers": Annotated[int, Range(0, 1024)],
        "tile": Pixels | None,
    },
    "ema": {"length": Proportion, "step": NonNegativeInt | None},
    "submit": {
        "nodes": PositiveInt,
        "gpus": NonNegativeInt,
        "cpus": PositiveInt,
        "hours": PositiveFloat,
        "signal": Annotated[int, Range(30, 65535)],  # sbatch's largest
        "dry": bool,
    },
}
"""By the name of the command's config; a group's name is no key."""

ADAM = {
    "lr": Annotated[float, Range(0, 1e9)],
    "betas": Annotated[Sequence[Proportion], Length(2, 2)],
    "eps": Annotated[float, Range(0, 1)],
    "weight_decay": NonNegativeFloat,
    "amsgrad": bool,
    "maximize": bool,
    "fused": bool | None,
}
LIBRARIES: Mapping[str, dict[str, Any]] = {
    "torch.optim.Adam": ADAM,
    "torch.optim.AdamW": ADAM,
    "lightning.Trainer": {
        "num_nodes": PositiveInt,
        "max_steps": PositiveInt,
        "val_check_interval": PositiveInt,
        "sync_batchnorm": bool,
        "detect_anomaly": bool,
        "inference_mode": bool,
        "benchmark": bool | None,
        "deterministic": bool | Literal["warn"] | None,
    },
}
"""By `_target_`."""
